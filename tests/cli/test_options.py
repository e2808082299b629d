"""What the tools share: their help, and one sentence for each mistake."""

import os
import pickle
import shutil

import pytest
import torch

from crate_mm.cli.options import Parser, add_common_options
from crate_mm.engine import read_checkpoint


@pytest.mark.parametrize("tool", ["train", "test", "knn", "get_flops", "convert_official", "results_table"])
def test_help(run_tool, tool):
    done = run_tool(tool, "--help")
    assert done.code == 0
    assert f"python tools/{tool}.py" in done.output


@pytest.mark.parametrize(
    ("tool", "args", "sentence"),
    [
        ("knn", (), "the following arguments are required: config, checkpoint; see knn.py --help"),
        ("train", ("debug", "--no\x1b"), r"unrecognized arguments: --no\x1b; see train.py --help"),
        ("train", ("debug", "--cfg-options", "a"), "--cfg-options takes KEY=VALUE, got 'a'; see train.py --help"),
        (
            "analyze",
            ("layers", "debug"),
            "the following arguments are required: checkpoint; see analyze.py layers --help",
        ),
    ],
)
def test_wrong_arguments_are_one_sentence(run_tool, tool, args, sentence):
    assert run_tool(tool, *args) == (2, f"error: {sentence}\n")


@pytest.mark.parametrize("flags", [{"avx2"}, {"avx2", "avx512_bf16"}, set()])
@pytest.mark.parametrize("options", [["debug"], ["debug", "--amp"]])
def test_amp_says_where_bf16_is_emulated(monkeypatch, capsys, options, flags):
    monkeypatch.setattr("crate_mm.engine.doctor.processor_flags", lambda: flags)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    parser = Parser()
    parser.add_argument("config")
    add_common_options(parser)
    parser.parse_args(options)
    said = "this processor has no instructions for bf16" in capsys.readouterr().err
    assert said == ("--amp" in options and flags == {"avx2"})


class Mark:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def options(*pairs):
    return ["debug", "--cfg-options", *pairs]


MISTAKES = {
    "unknown arch": (
        ["train", *options("model.backbone.arch=huge")],
        "unknown arch 'huge': choose tiny, small, base, large",
    ),
    "unknown backbone": (
        ["train", *options("model.backbone.type=CRATTE")],
        "unknown backbone 'CRATTE': did you mean CRATE, ",
    ),
    "unknown optimizer": (
        ["train", *options("optim_wrapper.optimizer.type=Lionn")],
        "unknown optimizer 'Lionn': did you mean",
    ),
    "unknown hook": (
        ["train", *options("default_hooks.mine=dict(type='SeedEchIteration')")],
        "unknown hook 'SeedEchIteration': did you mean SeedEachIteration",
    ),
    "unknown transform": (
        [
            "train",
            "crate_tiny_in1k",
            "--cfg-options",
            "train_dataloader.dataset.transforms.0.type=Resise",
            "data_root={tree}",
        ],
        "unknown transform 'Resise': did you mean Resize",
    ),
    "missing config": (
        ["train", "configs/crate_bas_in1k.py"],
        "configs/crate_bas_in1k.py does not exist: did you mean crate_base_in1k",
    ),
    "syntax error": (["train", "{tmp}/bad.py"], "bad.py, line 2 is not valid Python"),
    "misspelt option": (
        ["train", *options("train_cfg.max_epoch=1")],
        "train_cfg has no 'max_epoch': did you mean max_epochs",
    ),
    "option without value": (["train", *options("train_cfg")], "--cfg-options takes KEY=VALUE, got 'train_cfg'"),
    "missing data": (
        ["train", "crate_tiny_in1k", "--cfg-options", "data_root={tmp}/nowhere"],
        "data_root {tmp}/nowhere is not a folder: expected {tmp}/nowhere/train/<class>/<image>.JPEG",
    ),
    "wrong layout": (["train", "crate_tiny_in1k", "--cfg-options", "data_root={tmp}"], "has no folder 'train'"),
    "few classes": (
        ["train", "crate_tiny_in1k", "--cfg-options", "data_root={tree}", "global_batch_size=4"],
        "the data has 3 classes (n00000000, n00000001, n00000002, ...), the head 1000",
    ),
    "small data": (
        ["train", "crate_tiny_in1k", "--cfg-options", "data_root={tree}"],
        "global_batch_size 2048 is more than the 12 training samples",
    ),
    "odd patch": (
        ["train", *options("model.backbone.patch_size=3")],
        "img_size 8 x 8 is not a whole number of patches of 3 x 3",
    ),
    "no micro-batch": (
        ["train", *options("max_batch_per_device=0")],
        "max_batch_per_device must be a positive integer",
    ),
    "derived": (["train", *options("train_dataloader.batch_size=3")], "it is derived from global_batch_size"),
    "wrong argument": (["train", *options("model.backbone.ista_lamda=3")], "did you mean ista_lambda"),
    "missing checkpoint": (["test", "debug", "{tmp}/none.pth"], "checkpoint {tmp}/none.pth does not exist"),
    "truncated checkpoint": (["test", "debug", "{tmp}/truncated.pth"], "truncated.pth is damaged or not a checkpoint"),
    "other shapes": (
        ["test", "debug", "{checkpoint}", "--cfg-options", "model.backbone.arch.embed_dim=24"],
        "does not fit the model: backbone.embedding.cls_token is (1, 1, 48) in the file and (1, 1, 24) in the model",
    ),
    "hostile checkpoint": (
        ["test", "debug", "{tmp}/evil.pth"],
        "evil.pth is refused: loading it would run code from the file",
    ),
    "hostile official": (["convert_official", "{tmp}/evil.pth", "{tmp}/out.pth"], "evil.pth is refused"),
    "not official": (
        ["convert_official", "{checkpoint}", "{tmp}/out.pth"],
        "is not a checkpoint of the official CRATE code",
    ),
    "resume from weights": (
        ["train", "debug", "--work-dir", "{tmp}/w", "--resume", "{tmp}/weights.pth"],
        "cannot be resumed from",
    ),
    "no launcher": (["train", "debug", "--launcher", "pytorch"], "finds no RANK"),
    "no srun": (["train", "debug", "--launcher", "slurm"], "finds no SLURM_PROCID"),
    "bad output": (
        ["test", "debug", "{checkpoint}", "--json", "{tmp}/no/where.json"],
        "cannot write {tmp}/no/where.json",
    ),
    "no such start": (["train", "debug", "--load-from", "{tmp}/none.pth"], "checkpoint {tmp}/none.pth does not exist"),
    "start of another model": (
        ["train", *options("model.backbone.arch.embed_dim=24"), "--load-from", "{checkpoint}"],
        "is of another model: it fills 8 of the backbone's",
    ),
    "hostile start": (["train", "debug", "--load-from", "{tmp}/evil.pth"], "evil.pth is refused"),
    "hostile neighbours": (["knn", "debug", "{tmp}/evil.pth"], "evil.pth is refused"),
    "too many neighbours": (["knn", "debug", "{checkpoint}", "--k", "2000"], "k must be between 1 and the 1347"),
    "no neighbours": (["knn", "debug", "{checkpoint}", "--k", "0"], "expected a positive integer, got '0'"),
    "missing benchmark": (
        ["train", "transfer/pets", "--model", "crate_tiny_in1k", "--cfg-options", "data_root={tmp}/nowhere"],
        "expected {tmp}/nowhere/oxford-iiit-pet/ with images/ and annotations/",
    ),
    "no real.json": (["test", "debug", "{checkpoint}", "--real", "{tmp}/real.json"], "real.json does not exist"),
    "folder without output": (["test", "debug", "{checkpoint}", "--folder", "{tree}"], "--folder needs --out FILE"),
    "folder with labels": (
        ["test", "debug", "{checkpoint}", "--folder", "{tree}", "--out", "{tmp}/x.csv", "--per-class", "{tmp}/y.csv"],
        "--per-class needs labels",
    ),
    "no results": (["results_table", "{tmp}/work"], "work is not a directory"),
    "wrong shape": (["get_flops", "debug", "--shape", "9", "8"], "img_size 9 x 8 is not a whole number of patches"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.slow
def test_a_mistake_gets_one_sentence(run_tool, debug_checkpoint, image_tree, tmp_path, mistake):
    (tmp_path / "bad.py").write_text("x = 1\ny = = 2")
    (tmp_path / "truncated.pth").write_bytes(debug_checkpoint.read_bytes()[:5000])
    torch.save({"state_dict": {}, "evil": Mark(str(tmp_path / "mark"))}, tmp_path / "evil.pth")
    torch.save({"state_dict": None}, tmp_path / "none_inside.pth")
    weights = read_checkpoint(debug_checkpoint)["state_dict"]
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    places = dict(tmp=tmp_path, tree=image_tree, checkpoint=debug_checkpoint)
    (tool, *args), message = MISTAKES[mistake]
    args = [arg.format(**places) for arg in args]
    if tool == "train" and "--work-dir" not in args:
        args[1:1] = ["--work-dir", str(tmp_path / "work")]
    done = run_tool(tool, *args, timeout=60)
    assert done.code == 2, done.output
    assert "Traceback" not in done.output
    assert message.format(**places) in done.last_line, done.output
    assert "error: " in done.last_line
    assert not (tmp_path / "mark").exists()


def test_a_pickle_is_what_the_hostile_files_are(tmp_path):
    pickle.loads(pickle.dumps(Mark(str(tmp_path / "mark"))))
    assert (tmp_path / "mark").exists()
    shutil.rmtree(tmp_path / "mark")
