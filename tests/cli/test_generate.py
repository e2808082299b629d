"""crate-mm generate: what it prints, Ctrl-C, and what it refuses."""

import sys

import pytest
import torch

from crate_mm.cli import generate
from crate_mm.inference.generate import TextGenerator
from crate_mm.models import LanguageModel

MODEL = dict(
    type="LanguageModel",
    backbone=dict(
        type="CausalCRATE", arch=dict(embed_dim=8, depth=1, num_heads=2), vocab_size=256, context_length=8
    ),
    tokenizer="bytes",
)  # fmt: skip


def save(path, **changes):
    torch.manual_seed(0)
    model = {**MODEL, **changes}
    weights = LanguageModel(**{key: value for key, value in model.items() if key != "type"}).state_dict()
    torch.save({"meta": {"model": model}, "state_dict": weights}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    return save(tmp_path / "text.pth")


def test_it_prints_the_prompt_and_the_text(checkpoint, run_main, capsys):
    done = run_main("generate", checkpoint, "--prompt", "~ab", "--temperature", 0, "--max-tokens", 12)
    text = TextGenerator(str(checkpoint))("~ab", temperature=0, max_tokens=12)
    generate.write(f"~ab{text}\n")
    assert capsys.readouterr().out in done.output


def test_control_characters_are_escaped(capsys):
    generate.write("a\n\tb\\t\x1b[2J\x07")
    assert capsys.readouterr().out == "a\n\tb\\t\\x1b[2J\\x07"


def test_ctrl_c_ends_the_text(checkpoint, monkeypatch, capsys):
    def stream(self, *options):
        yield "one"
        raise KeyboardInterrupt

    monkeypatch.setattr(TextGenerator, "stream", stream)
    monkeypatch.setattr(sys, "argv", ["generate", str(checkpoint)])
    with pytest.raises(SystemExit) as end:
        generate.main()
    captured = capsys.readouterr()
    assert (end.value.code, captured.out, captured.err) == (130, "one\n", "interrupted\n")
