"""What the tools share: their help, and one sentence for each mistake."""

import re

import pytest

from crate_mm.__main__ import COMMANDS
from crate_mm.cli.completion import parser_of
from crate_mm.cli.options import Parser, add_common_options


def test_help(run_tool):
    done = run_tool("convert_official", "--help")
    assert done.code == 0
    assert "python tools/convert_official.py" in done.output


@pytest.mark.parametrize(
    ("tool", "args", "sentence"),
    [
        ("knn", (), "the following arguments are required: config, checkpoint: expected knn.py config checkpoint"),
        ("report", ("c", "k"), "the following arguments are required: --out: expected report.py --out FILE config ch"),
        ("train", ("debug", "--load-form\x1b"), r"unrecognized arguments: --load-form\x1b: did you mean --load-from?"),
        ("train", ("debug", "again"), "unrecognized arguments: again: expected train.py config"),
        ("train", ("debug", "--cfg-options", "a"), "--cfg-options takes KEY=VALUE, got 'a'"),
        (
            "analyze",
            ("layers", "debug"),
            "the following arguments are required: checkpoint: expected analyze.py layers",
        ),
        ("analyze", ("layers", "c", "k", "--splt", "x"), "unrecognized arguments: --splt x: did you mean --split"),
        ("analyze", ("subspace", "debug", "k"), "argument FIGURE: invalid choice: 'subspace': did you mean subspaces"),
        ("browse", ("c", "--split", "x"), "argument --split: invalid choice: 'x': choose train, val, test"),
        ("browse", ("c", "--same", "x"), "argument --same: expected an integer, got 'x'"),
        ("report", ("c", "k", "--eps-squared", "x"), "argument --eps-squared: expected a number, got 'x'"),
        ("print_config", (), "expected either config or --list"),
    ],
)
def test_wrong_arguments_are_one_sentence(run_tool, tool, args, sentence):
    done = run_tool(tool, *args)
    assert (done.code, done.output.count("\n")) == (2, 1)
    assert done.output.startswith(f"error: {sentence}")
    assert re.search(rf"; see {tool}.py [a-z ]*--help\n$", done.output)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_takes_an_unknown_option(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        parser_of(command).parse_args(["--nonsense"])
    assert re.fullmatch("error: .*; see crate-mm .*--help\n", capsys.readouterr().err)


@pytest.mark.parametrize("flags", [{"avx2"}, {"avx2", "avx512_bf16"}, set()])
@pytest.mark.parametrize("options", [["debug"], ["debug", "--amp"]])
def test_amp_says_where_bf16_is_emulated(monkeypatch, capsys, options, flags):
    monkeypatch.setattr("crate_mm.extras.doctor.processor_flags", lambda: flags)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    parser = Parser()
    parser.add_argument("config")
    add_common_options(parser)
    parser.parse_args(options)
    said = "this processor has no instructions for bf16" in capsys.readouterr().err
    assert said == ("--amp" in options and flags == {"avx2"})


def options(*pairs):
    return ["debug", "--cfg-options", *pairs]


MISTAKES = {
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
    "missing data": (
        ["train", "crate_tiny_in1k", "--cfg-options", "data_root={tmp}/nowhere"],
        "data_root {tmp}/nowhere is not a folder: expected {tmp}/nowhere/train/<class>/<image>.JPEG",
    ),
    "derived": (["train", *options("train_dataloader.batch_size=3")], "it is derived from global_batch_size"),
    "wrong argument": (["train", *options("model.backbone.ista_lamda=3")], "did you mean ista_lambda"),
    "missing checkpoint": (["test", "debug", "{tmp}/none.pth"], "checkpoint {tmp}/none.pth does not exist"),
    "other shapes": (
        ["test", "debug", "{checkpoint}", "--cfg-options", "model.backbone.arch.embed_dim=24"],
        "does not fit the model: backbone.embedding.cls_token is (1, 1, 48) in the file and (1, 1, 24) in the model",
    ),
    "not official": (
        ["convert_official", "{checkpoint}", "{tmp}/out.pth"],
        "is not a checkpoint of the official CRATE code",
    ),
    "no launcher": (["train", "debug", "--launcher", "pytorch"], "finds no RANK"),
    "no srun": (["train", "debug", "--launcher", "slurm"], "finds no SLURM_PROCID"),
    "bad output": (
        ["test", "debug", "{checkpoint}", "--json", "{tmp}/no/where.json"],
        "cannot write {tmp}/no/where.json",
    ),
    "folder without output": (["test", "debug", "{checkpoint}", "--folder", "{tree}"], "--folder needs --out FILE"),
    "folder with labels": (
        ["test", "debug", "{checkpoint}", "--folder", "{tree}", "--out", "{tmp}/x.csv", "--per-class", "{tmp}/y.csv"],
        "--per-class needs labels",
    ),
    "no results": (["results_table", "{tmp}/work"], "work is not a directory"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.slow
def test_a_mistake_gets_one_sentence(run_tool, debug_checkpoint, image_tree, tmp_path, mistake):
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
