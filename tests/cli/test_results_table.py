"""``results_table``, by running it."""

import json


def test_results_table(run_main, tmp_path):
    def leave(name, model, dataset, kind, top1, seed=0, **more):
        (tmp_path / name).mkdir()
        figures = {"top1": top1, **more.pop("figures", {})}
        result = dict(model=model, dataset=dataset, kind=kind, seed=seed, parameters=6_090_856, last=figures, **more)
        (tmp_path / name / "result.json").write_text(json.dumps(result))

    leave("a", "crate_tiny", "CIFAR10", "fine-tuning", 90.0, best=dict(top1=91.0))
    leave("b", "crate_tiny", "CIFAR10", "fine-tuning", 92.0, seed=1)
    leave("c", "crate_tiny", "CIFAR10", "fine-tuning", 94.0, seed=1, checkpoint="x.pth")  # a test of b
    leave("d", "vit_tiny", "ImageNet", "from scratch", 70.0, figures={"real/top1": 77.0}, checkpoint="y.pth")
    leave("e", "crate_tiny", "CIFAR10", "linear probe", 60.0, finished=False)
    done = run_main("results_table", tmp_path)
    lines = done.output.splitlines()
    assert lines[0] == "| top-1, % | CRATE-Tiny | ViT-Tiny |"
    assert "| ImageNet | (66.7) | 70.00 (71.5) |" in lines
    assert "| ImageNet ReaL | (74.0) | 77.00 (78.3) |" in lines
    assert "| CIFAR10 | 92.00 (90.00 to 94.00, 2) (95.5) | (96.6) |" in lines
    assert "| CIFAR10, linear probe | 60.00\\* |  |" in lines
    assert "92.50 (91.00 to 94.00, 2)" in run_main("results_table", tmp_path, "--figure", "best").output


def leave_result(folder, top1, run, seed=0, **more):
    folder.mkdir()
    recipe = {"max_epochs": 3, "optim_wrapper": {"optimizer": {"type": "Lion", "lr": 0.1}}, **more.pop("recipe", {})}
    result = dict(model="crate_tiny", dataset="Digits", kind="from scratch", seed=seed, run=run, recipe=recipe)
    metric = more.pop("metric", "top1")
    headline = {"metric": metric, "rule": "greater"}
    (folder / "result.json").write_text(json.dumps({**result, "headline": headline, "last": {metric: top1}, **more}))


def test_runs_are_told_apart_by_their_whole_recipe(run_main, tmp_path):
    leave_result(tmp_path / "a", 90.0, "a")
    leave_result(tmp_path / "b", 92.0, "b", seed=1)
    leave_result(tmp_path / "c", 70.0, "c", recipe={"max_epochs": 1})
    other = {"optim_wrapper": {"optimizer": {"type": "Lion", "lr": 0.2}}}
    leave_result(tmp_path / "d", 80.0, "d", recipe=other)
    # A test of run a, by another config: a published file's, which is no further seed.
    leave_result(tmp_path / "e", 91.0, "a", seed=None, checkpoint="a.safetensors")
    done = run_main("results_table", tmp_path)
    assert "| Digits, from scratch (max_epochs 3, lr 0.1) | 91.50 (91.00 to 92.00, 2) |" in done.output
    assert "| Digits, from scratch (max_epochs 1, lr 0.1) | 70.00 |" in done.output
    assert "| Digits, from scratch (max_epochs 3, lr 0.2) | 80.00 |" in done.output


def test_recipes_that_differ_deep_inside_have_rows_of_their_own(run_main, tmp_path):
    for name, scale, top1 in (("a", 0.5, 10.0), ("b", 0.9, 90.0)):
        transforms = [{"type": "RandomResizedCrop", "size": 224, "ratio": [0.75, 1.3333333], "scale": [scale, 1.0]}] * 4
        leave_result(tmp_path / name, top1, name, recipe={"train_transforms": transforms})
    rows = [line for line in run_main("results_table", tmp_path).output.splitlines() if line.startswith("| Digits")]
    assert sorted(row.split("|")[2].strip() for row in rows) == ["10.00", "90.00"]


def test_two_pretrainings_for_one_seed_are_two_recipes(run_main, tmp_path):
    for name, seed, start in (("a", 0, "p0.pth"), ("b", 1, "p1.pth")):
        leave_result(tmp_path / name, 80.0 + seed, name, seed=seed, recipe={"initialized_from": start})
    assert "| Digits, from scratch | 80.50 (80.00 to 81.00, 2) |" in run_main("results_table", tmp_path).output
    leave_result(tmp_path / "c", 60.0, "c", recipe={"initialized_from": "other.pth"})
    output = run_main("results_table", tmp_path).output
    assert '| Digits, from scratch (initialized_from "other.pth") | 60.00 |' in output
    assert '| Digits, from scratch (initialized_from "p0.pth") | 80.00 |' in output


def test_runs_are_ordered_by_no_clock(run_main, tmp_path):
    """Of one run the later launch counts, then the later epoch; runs of one seed all count."""

    def top1():
        lines = run_main("results_table", tmp_path).output.splitlines()
        return next(line.split("|")[2].strip() for line in lines if line.startswith("| Digits"))

    leave_result(tmp_path / "z", 10.0, "a", launch=1, epochs=3, date="2035-01-01")
    leave_result(tmp_path / "copy", 20.0, "a", launch=2, epochs=2, date="2025-01-01")
    assert top1() == "20.00"
    leave_result(tmp_path / "y", 30.0, "a", launch=2, epochs=1, date="2035-01-01", checkpoint="epoch_1.pth")
    leave_result(tmp_path / "x", 40.0, "a", launch=2, epochs=2, date="2025-01-01", checkpoint="epoch_2.pth")
    assert top1() == "40.00"
    leave_result(tmp_path / "again", 60.0, "b", launch=1, epochs=3, date="1970-01-01")
    assert top1() == "50.00 (40.00 to 60.00, 2)"


def test_a_run_that_was_put_aside_counts_where_none_is_in_its_place(run_main, tmp_path):
    (tmp_path / "w").mkdir()
    leave_result(tmp_path / "w/before_20250101_000000", 10.0, "a")
    leave_result(tmp_path / "w/before_20250101_000000_2", 20.0, "b", seed=1)
    leave_result(tmp_path / "w/test", 90.0, "a", checkpoint="epoch_1.pth")
    assert "| 55.00 (20.00 to 90.00, 2) |" in run_main("results_table", tmp_path).output
    leave_result(tmp_path / "c", 30.0, "c")
    assert "| 25.00 (20.00 to 30.00, 2) |" in run_main("results_table", tmp_path).output


def test_a_recipe_of_too_many_settings_is_refused(run_main, tmp_path):
    leave_result(tmp_path / "a", 90.0, "a", recipe={f"k{number}": number for number in range(20_000)})
    done = run_main("results_table", tmp_path, code=2)
    assert done.last_line.endswith("is not a result file of crate_mm: its recipe holds more than 20,000 values")


def test_another_headline_has_a_table_of_its_own(run_main, tmp_path):
    leave_result(tmp_path / "a", 90.0, "a")
    leave_result(tmp_path / "b", 0.25, "b", metric="error")
    done = run_main("results_table", tmp_path)
    assert "| top-1, % | CRATE-Tiny |" in done.output
    assert "| error | CRATE-Tiny |" in done.output
    assert "| Digits, from scratch | 0.25 |" in done.output
