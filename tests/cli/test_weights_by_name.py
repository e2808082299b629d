"""Commands take a checkpoint from the Hub, which all open in one place, against a server that speaks its protocol."""

import json
import re

import pytest
import torch

from crate_mm.engine import read_checkpoint

ADDRESS = "hf://me/model/sub/epoch_1.pth"
COMMANDS = {
    "test": ["test", "debug", ADDRESS, "--json", "{tmp}/figures.json", "--work-dir", "{tmp}/test"],
    "publish": ["publish", ADDRESS, "{tmp}/out.safetensors"],
    "export": ["export", "checkpoint", ADDRESS, "--to", "torchscript", "--out", "{tmp}/out.ts"],
}


@pytest.fixture
def shared(hub, debug_checkpoint):
    hub.repos["me/model"] = {"main": {"sub/epoch_1.pth": debug_checkpoint.read_bytes()}}
    return hub


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.slow
def test_a_command_takes_a_checkpoint_from_the_hub(command, shared, run_main, debug_checkpoint, tmp_path):
    run_main(*(word.format(tmp=tmp_path) for word in COMMANDS[command]))
    assert len(shared.asked("GET", "/sub/epoch_1.pth")) == 1
    if command == "test":
        figures = json.loads((tmp_path / "figures.json").read_text())
        run_main("test", "debug", debug_checkpoint, "--json", tmp_path / "here.json", "--work-dir", tmp_path)
        assert figures == {**json.loads((tmp_path / "here.json").read_text()), "checkpoint": ADDRESS}
    if command == "publish":
        ours, theirs = read_checkpoint(debug_checkpoint), read_checkpoint(tmp_path / "out.safetensors")
        assert all(torch.equal(value, theirs["state_dict"][name]) for name, value in ours["state_dict"].items())


@pytest.mark.slow
def test_training_starts_from_a_checkpoint_of_the_hub(shared, run_tool, tmp_path):
    short = ["--cfg-options", "train_cfg.max_epochs=1", "global_batch_size=449"]
    done = run_tool("train", "debug", "--load-from", ADDRESS, "--work-dir", tmp_path / "run", *short)
    assert done.code == 0, done.output
    assert json.loads((tmp_path / "run" / "result.json").read_text())["initialized_from"] == ADDRESS
    assert re.search(r"loaded +backbone\.", done.output), "the backbone is the checkpoint's"


@pytest.mark.slow
def test_training_goes_on_from_a_checkpoint_of_the_hub(shared, run_tool, tmp_path):
    longer = ["--cfg-options", "train_cfg.max_epochs=2"]
    done = run_tool("train", "debug", "--resume", ADDRESS, "--work-dir", tmp_path / "run", *longer)
    assert done.code == 0, done.output
    assert "resumed epoch: 1, iter: 10" in done.output


@pytest.mark.slow
def test_processes_that_work_together_download_once(shared, run_processes, tmp_path):
    short = ["--cfg-options", "train_cfg.max_epochs=1", "global_batch_size=256"]
    shared.pause_s = 0.5
    done = run_processes("train", "debug", "--load-from", ADDRESS, "--work-dir", tmp_path / "run", *short)
    assert done.code == 0, done.output
    assert len(shared.asked("GET", "/sub/epoch_1.pth")) == 1


def test_what_is_not_there_ends_a_command_with_one_sentence(shared, run_main, tmp_path):
    done = run_main("test", "debug", "hf://me/model/none.pth", code=2)
    assert done.last_line == "error: hf://me/model/none.pth cannot be downloaded: the repository has no file none.pth"
    assert "Traceback" not in done.output
