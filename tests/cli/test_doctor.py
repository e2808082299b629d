"""``doctor``, by running it."""

import pytest
import torch

from crate_mm.extras import doctor
from tests.conftest import make_image_tree


def test_the_machine(run_main, tmp_path, monkeypatch):
    monkeypatch.setattr("crate_mm.cli.doctor.REPLACED", {"MPLBACKEND": ("agg", "the commands draw into files")})
    done = run_main("doctor", cwd=tmp_path, code=None)
    lines = done.output.splitlines()
    assert lines[0] == "machine"
    assert any(line.split()[:3] == ["ok", "torch", torch.__version__.partition("+")[0]] for line in lines)
    assert any(line.startswith("  ok    work_dir") for line in lines)
    assert "  note  MPLBACKEND          replaced by agg: the commands draw into files" in lines
    assert done.code == ("\n  fault" in done.output)
    assert "\x1b" not in done.output


def test_data_and_config(run_main, tmp_path):
    data = make_image_tree(tmp_path / "data", classes=3)
    (data / "train" / "n00000001").rename(data / "train" / "[red]\n\x1b[31m$")
    (data / "val" / "n00000001").rename(data / "val" / "[red]\n\x1b[31m$")
    options = ("--cfg-options", f"data_root={data}", "global_batch_size=4")
    done = run_main("doctor", "crate_base_in1k", "--data", data, *options, "model.head.num_classes=3")
    assert "\x1b" not in done.output
    lines = [line.split(maxsplit=2) for line in done.output.splitlines()]
    assert lines.count(["ok", "train", "12 images in 3 classes"]) == 2
    assert done.last_line.startswith("faults: 0, ")
    done = run_main("doctor", "crate_base_in1k", *options, code=1)
    assert "3 classes in the data, 1000 in the head (model.head.num_classes)" in done.output
    assert done.last_line.startswith("faults: 1, ")


@pytest.mark.parametrize("args", [("--data", "nowhere"), ("crate_base_in1k",)])
def test_data_that_is_not_there_will_not_work(run_main, tmp_path, args):
    done = run_main("doctor", *args, cwd=tmp_path, code=1)
    assert "fault data" in done.output
    assert "is not a folder" in done.output


def test_versions_are_compared_with_those_wanted(monkeypatch):
    wanted = ["torch>=99", "einops>=0.8", "nothing_of_this_name", 'onnxruntime>=99; extra == "export"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: wanted)
    told = {topic: (level, text) for level, topic, text in doctor.check_packages()}
    assert told["torch"][0] == "fault"
    assert told["torch"][1].endswith("torch>=99 is required")
    assert told["einops"][0] == "ok"
    assert told["nothing_of_this_name"][1] == "not installed: nothing_of_this_name is required"
    assert told["extra export"] == ("ok", "not installed, needs onnxruntime>=99: pip install 'crate_mm[export]'")


def test_places_that_will_not_do(tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    told = {topic: (level, text) for level, topic, text in doctor.check_resources(tmp_path / "not" / "yet")}
    assert told["work_dir"] == ("fault", f"cannot write to {tmp_path}: [Errno 13] Permission denied")


@pytest.mark.gpu
def test_gpus_are_told():
    told = {topic: (level, text) for level, topic, text in doctor.check_gpus()}
    assert told["GPU 0"][0] == "ok"
    assert torch.cuda.get_device_name(0) in told["GPU 0"][1]
