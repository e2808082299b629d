"""What the commands share: a mistake ends each with one sentence and exit code 2; a refusal is tested through one."""

import re
import shlex

import pytest
import torch

from crate_mm.__main__ import COMMANDS
from crate_mm.cli.completion import parser_of
from crate_mm.cli.options import Parser, add_common_options, distinct_names
from crate_mm.datasets import Digits
from tests.cli.test_generate import save

# Command -> the beginning of its only line, after "error: ".
USAGE = {
    "knn": "the following arguments are required: config, checkpoint: expected knn.py config checkpoint",
    "report c k": "the following arguments are required: --out: expected report.py --out FILE config ch",
    "train debug --load-form\x1b": r"unrecognized arguments: --load-form\x1b: did you mean --load-from?",
    "train debug again": "unrecognized arguments: again: expected train.py config",
    "train debug --cfg-options a": "--cfg-options takes KEY=VALUE, got 'a'",
    "analyze layers debug": "the following arguments are required: checkpoint: expected analyze.py layers",
    "analyze layers c k --splt x": "unrecognized arguments: --splt x: did you mean --split",
    "analyze subspace debug k": "argument FIGURE: invalid choice: 'subspace': did you mean subspaces",
    "browse c --split x": "argument --split: invalid choice: 'x': choose train, val, test",
    "browse c --same x": "argument --same: expected an integer, got 'x'",
    "report c k --eps-squared x": "argument --eps-squared: expected a number, got 'x'",
    "print_config": "expected either config or --list",
    "pack_dataset . x --part=3/2": "argument --part: expected I/N with 1 <= I <= N, such as 2/8, got '3/2'",
}
# Command -> a part of its last line. The folder has photos, texts, checkpoints, and a file that is no image.
MISTAKES = {
    "analyze tokens debug random --layers 3": "layer 3 does not exist: CRATE has 2 layers, 1 to 2",
    "analyze tokens debug random --layers 0": "layers are counted from 1, or from -1 backward",
    "analyze tokens debug random --index 450": "--index 450 does not exist: the split has 450",
    "analyze attention debug random --images bad.png": "image bad.png cannot be read",
    "average a.pth --out b.pth": "expected two checkpoints or more",
    "average a.pth ./a.pth --out b.pth": "a.pth is named twice",
    "average a.pth b.pth --out c.txt": "c.txt must be named *.pth",
    "average a.pth b.pth --out c.pth": "checkpoint a.pth does not exist",
    "average a.pth b.pth --out c.pth --cfg-options x=1": "--cfg-options needs --greedy or --statistics",
    "browse debug --out a.jpg": "--out a.jpg must end in .png or .pdf",
    "browse debug --split val --same 1": "--same and --epoch need --split train",
    "browse debug --same 5000": "sample 5000 does not exist: the data has 1347 samples, from 0",
    "browse compare_language/crate": "is not an image: expected uint8 of shape (C, H, W), got int64 of (256,)",
    "convert_official digits.pth out.pth": "is not a checkpoint of the official CRATE code",
    "doctor nothing": "config nothing does not exist",
    "doctor --cfg-options a=1": "--cfg-options needs CONFIG",
    "generate crate_mini_digits": "expected a LanguageModel to generate text, got the task ImageClassifier",
    "generate text.pth --temperature -1": "temperature must be a finite number of at least 0",
    "generate text.pth --tokenizer words.json": "was trained on bytes, not on tokens of words.json",
    "generate words.pth": "was trained with words.json (sha256 000000000000), which checkpoints do not contain",
    "get_flops compare_language/crate --shape 8 8": "--shape is for models of images, got LanguageModel",
    "knn debug digits.pth --k 1348": "k must be between 1 and the 1347 training images, got 1348",
    "knn debug digits.pth --temperature 0": "temperature must be a number above 0, or None, got 0.0",
    "neighbours digits.pth . --out a.csv": "--out a.csv must end in .npz for features, or in .png or .pdf for a sheet",
    "neighbours digits.pth . --query 0.png --out a.npz": "--query needs a sheet, such as --out sheet.png",
    "neighbours digits.pth . --k 3 --out a.png": "k must be between 1 and the 2 images to choose from, got 3",
    "neighbours digits.pth bad.png --out a.npz": "none of the 1 images can be read; the first: cannot identify",
    "neighbours positions.pth . --out a.npz": "positions.pth does not fit the model: backbone.embedding.pos_embed is "
    "(1, 5, 48) in the file and (1, 17, 48) in the model",
    "pack_text none packed": "none does not exist or is not a folder: expected a folder of text files",
    "pack_text texts packed --glob *.md": "has no file *.md",
    "pack_text texts packed --tokenizer words.json": "the tokenizer words.json cannot be read",
    "pack_text texts/0.txt packed": "none of the 1 files belongs to the split 'val'",
    "plot": "give either the work directories of runs or --schedule CONFIG",
    "plot nowhere": "nowhere has no log of a run",
    "plot nowhere --out a.gif": "--out a.gif must end in .png, .pdf or .csv",
    "plot nowhere --samples 3": "--samples and --cfg-options need --schedule CONFIG",
    "plot --schedule debug --keys lr": "--keys selects values of runs: a schedule is plotted whole",
    "plot --schedule debug --samples 3": "is more than the 3 training samples",
    "predict digits.pth nowhere.png": "there is no file or folder nowhere.png",
    "predict digits.pth *.gif": "no file matches *.gif",
    "predict digits.pth 0.png --out x.txt": "--out x.txt must end in .csv for rows, or in .png or .pdf for a sheet",
    "predict digits.pth 0.png --number 3": "--number needs a sheet, such as --out sheet.png",
    "predict digits.pth bad.png": "none of the 1 images can be read; the first: cannot identify image file",
    "print_config debug --cfg-options global_batch_size=0": "global_batch_size must be a positive integer",
    "report debug random --also debug --out a.html": "--also takes a config and its checkpoints, got debug alone",
    "report debug random --masks . --out a.html": "--masks needs --images, and must be a folder of ground-truth masks",
    "report debug random --images none --out a.html": "none is not a folder",
    "results_table nowhere": "nowhere is not a directory",
    "test debug none.pth": "checkpoint none.pth does not exist",
    "test debug digits.pth --cfg-options model.backbone.arch.embed_dim=24": "does not fit the model: "
    "backbone.embedding.cls_token is (1, 1, 48) in the file and (1, 1, 24) in the model",
    "test debug digits.pth --json no/where.json": "cannot write no/where.json",
    "test debug digits.pth --folder .": "--folder needs --out FILE",
    "test debug digits.pth --folder . --out x.csv --per-class y.csv": "--per-class needs labels",
    "train crate_tiny_in1k --cfg-options data_root=no": "data_root no is not a folder: expected no/train/<class>/",
    "train configs/crate_bas_in1k.py": "configs/crate_bas_in1k.py does not exist: did you mean crate_base_in1k",
    "train debug --cfg-options train_dataloader.batch_size=3": "it is derived from global_batch_size",
    "train debug --cfg-options model.backbone.ista_lamda=3": "did you mean ista_lambda",
    "train debug --cfg-options \"train_dataloader.dataset.transforms=[{'type': 'Resise'}]\"": "unknown transform "
    "'Resise': did you mean Resize",
    "train debug --launcher pytorch": "finds no RANK",
    "train debug --launcher slurm": "finds no SLURM_PROCID",
    "train debug --dry-run --resume": "leave out --resume",
    "train crate_mae_mini_fashion_mnist --linear-probe": "--linear-probe needs a task that freezes its backbone: "
    "MaskedAutoencoder has no argument freeze_backbone",
}


@pytest.mark.parametrize("line", USAGE)
def test_a_usage_error_is_one_line(run_main, line):
    tool, *args = shlex.split(line)
    done = run_main(tool, *args, code=2)
    assert done.output.count("\n") == 1
    assert done.output.startswith(f"error: {USAGE[line]}")
    assert re.search(rf"; see {tool}.py [a-z ]*--help\n$", done.output)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_takes_an_unknown_option(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        parser_of(command).parse_args(["--nonsense"])
    assert re.fullmatch("error: .*; see crate-mm .*--help\n", capsys.readouterr().err)


@pytest.fixture(scope="module")
def folder(debug_checkpoint, tmp_path_factory):
    """Photos, texts, and checkpoints: of digits, with positions of another grid, and of texts."""
    folder = tmp_path_factory.mktemp("mistakes")
    for number in range(3):
        Digits("test")[number][0].save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "texts").mkdir()
    (folder / "texts" / "0.txt").write_text("text")
    contents, positions = torch.load(debug_checkpoint, weights_only=False), "backbone.embedding.pos_embed"
    torch.save(contents, folder / "digits.pth")
    contents["state_dict"][positions] = contents["state_dict"][positions][:, :5].clone()
    torch.save(contents, folder / "positions.pth")
    save(folder / "text.pth")
    save(folder / "words.pth", tokenizer=dict(name="words.json", sha256="0" * 64, vocab_size=256, end="<|endoftext|>"))
    return folder


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_gets_one_sentence(run_main, folder, line):
    tool, *args = shlex.split(line)
    done = run_main(tool, *args, cwd=folder, code=2)
    assert "Traceback" not in done.output
    assert done.last_line.startswith("error: ")
    assert MISTAKES[line] in done.last_line


def test_help(run_main):
    assert "python tools/convert_official.py" in run_main("convert_official", "--help").output


@pytest.mark.parametrize("flags", [{"avx2"}, {"avx2", "avx512_bf16"}, set()])
@pytest.mark.parametrize("options", [["debug"], ["debug", "--amp"]])
def test_amp_says_where_bf16_is_emulated(monkeypatch, capsys, options, flags):
    monkeypatch.setattr("crate_mm.extras.doctor.processor_flags", lambda: flags)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    parser = Parser()
    parser.add_argument("config")
    add_common_options(parser, "logs")
    parser.parse_args(options)
    said = "this processor has no instructions for bf16" in capsys.readouterr().err
    assert said == ("--amp" in options and flags == {"avx2"})


def test_curves_are_named_by_what_tells_them_apart():
    assert distinct_names(["a/epoch_1.pth", "a/epoch_2.pth"]) == ["epoch_1", "epoch_2"]
    assert distinct_names(["a/epoch_1.pth", "b/epoch_1.pth", "random"]) == ["a/epoch_1", "b/epoch_1", "random"]
    assert distinct_names(["x/a/1.pth", "x/b/1.pth", "y/a/1.pth"]) == ["x/a/1", "b/1", "y/a/1"]
    assert distinct_names(["1.pth", "1.pth"]) == ["1 (1)", "1 (2)"]
