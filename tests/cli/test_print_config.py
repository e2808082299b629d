"""``print_config``, and training that is only said."""

from crate_mm.config import load_config
from crate_mm.config.load import packaged_configs


def test_what_is_printed_is_the_config(run_main, tmp_path):
    options = ("--cfg-options", "max_batch_per_device=16", "train_cfg.max_epochs=7")
    done = run_main("print_config", "debug", "--processes", 2, *options)
    (tmp_path / "printed.py").write_text(done.output)
    printed = load_config(str(tmp_path / "printed.py"))
    meant = load_config("debug", {"max_batch_per_device": 16, "train_cfg.max_epochs": 7})
    assert printed.to_dict() == meant.to_dict()
    for line in (
        "#   train_dataloader.batch_size = 64  (global_batch_size and the number of processes)",
        "#   train_cfg.micro_batches = 4  (global_batch_size and max_batch_per_device)",
        "#   tf32 = False  (the default)",
    ):
        assert line in done.output.splitlines()
    done = run_main("print_config", "debug", "--processes", 5)
    assert "#   images per step: 128 = 5 processes x 25 or 26" in done.output.splitlines()
    done = run_main("print_config", "transfer/pets")
    assert "--load-from gives the model" in done.last_line


def test_the_list_names_each_config_with_its_first_line(run_main):
    done = run_main("print_config", "--list")
    rows = dict(line.split("  ", 1) for line in done.output.splitlines())
    assert rows.keys() == packaged_configs().keys()
    assert rows["debug"].strip() == "A CRATE of 16,098 parameters on the digits, for tests: two epochs take seconds."


def test_a_dry_run_says_what_would_be_trained_and_leaves_nothing(run_main, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    done = run_main("train", "debug", "--dry-run", "--work-dir", here / "run", cwd=here)
    assert "effective batch 128 = 1 process x 128 images of 1347; 10 steps an epoch, 2 epochs" in done.output
    assert done.last_line == (
        "dry run: every check has passed; without --dry-run, 16,098 parameters of ImageClassifier are trained on 1,347 "
        f"samples of 10 classes, from random weights; the results go to {here / 'run'}"
    )
    assert list(here.iterdir()) == []
    done = run_main("train", "debug", "--dry-run", "--cfg-options", "model.head.num_classes=7", cwd=here, code=2)
    assert "the data has 10 classes" in done.last_line
    assert list(here.iterdir()) == []
