"""Values of the command line, read as what their setting is."""

import keyword
import string
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crate_mm.config.kinds import RawText, accepted_types, parse_value, read
from crate_mm.engine import load_config
from crate_mm.models.layers import ISTA

# Names that people give to folders: with commas, digits alone, brackets, and words that Python knows.
names = st.text(string.ascii_letters + string.digits + " ,._-&()[]{}=é猫", min_size=1, max_size=12)


@cache
def recipe():
    return load_config("crate_tiny_in1k")


def setting(key: str, text: str):
    value = load_config(recipe(), {key: RawText(text)})
    for part in key.split("."):
        value = value[int(part)] if part.isdigit() else value[part]
    return value


@settings(max_examples=30, deadline=None)
@given(name=names.filter(lambda name: name.lower() != "none"))
def test_a_path_is_the_text_as_it_stands(name):
    keys = ("data_root", "work_dir", "train_dataloader.dataset.source.root")
    cfg = load_config(recipe(), {key: RawText(name) for key in keys})
    assert [cfg.data_root, cfg.work_dir, cfg.train_dataloader.dataset.source.root] == [name] * 3


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("data_root", "none", None),
        ("data_root", "'none'", "none"),
        ("data_root", "'/data/a, b'", "/data/a, b"),
        ("data_root", "2024", "2024"),
        ("model.backbone.arch", "dict(embed_dim=48, depth=2, num_heads=3)", dict(embed_dim=48, depth=2, num_heads=3)),
        ("model.backbone.arch", "small", "small"),
        ("model.backbone.img_size", "(96, 128)", (96, 128)),
        ("optim_wrapper.optimizer.betas", "0.9,0.95", [0.9, 0.95]),
        ("optim_wrapper.clip_grad", "None", None),
        ("optim_wrapper.clip_grad", "dict(max_norm=1)", {"max_norm": 1}),
        ("val_evaluator.topk", "1", 1),
        ("optim_wrapper.optimizer.betas", "0.9", [0.9]),
        ("val_evaluator.topk", "1,5", [1, 5]),
        ("default_hooks.white_box", "dict(type=WhiteBoxHook)", {"type": "WhiteBoxHook"}),
        ("train_dataloader.dataset.source.type", "ClassFolders", "ClassFolders"),
        (
            "train_dataloader.dataset.transforms",
            "[dict(type=Resize, size=[8, 8])]",
            [{"type": "Resize", "size": [8, 8]}],
        ),
    ],
)
def test_a_setting_is_read_as_what_it_is(key, text, value):
    got = setting(key, text)
    assert got == value
    assert isinstance(got, type(value))


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("model.backbone.ista_lambda", "a lot", "model.backbone.ista_lambda: expected a number, got 'a lot'"),
        ("model.backbone.ista_lambda", "[1]", "model.backbone.ista_lambda: expected a number"),
        ("global_batch_size", "many", "global_batch_size: expected int such as 2048, got 'many'"),
        ("model", "1", r"model: expected a dict, or one of its keys as model.KEY=..., got 1"),
        (
            "param_scheduler",
            "[a-b, c]",
            r"param_scheduler: '\[a-b, c\]' is not a list, tuple or dict: put its words in q",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_key(key, text, message):
    with pytest.raises(ValueError, match=f"--cfg-options {message}"):
        setting(key, text)


def test_a_setting_that_takes_a_number_or_a_word_may_change_from_the_number_to_the_word():
    cfg = load_config("configs/simdino_crate_mini_fashion_mnist.py", {"model.group_size": RawText("batch")})
    assert cfg.model.group_size == "batch"


def test_a_changed_type_decides_how_its_arguments_are_read():
    overrides = {
        "train_dataloader.dataset.source.root": RawText("2024"),
        "train_dataloader.dataset.source.type": RawText("PackedImages"),
    }
    assert load_config(recipe(), overrides).train_dataloader.dataset.source == dict(
        type="PackedImages", root="2024", split="train"
    )


def is_word(text: str) -> bool:
    return not keyword.iskeyword(text)


@given(st.recursive(st.integers() | st.text(string.ascii_letters, min_size=1).filter(is_word), st.lists, max_leaves=8))
def test_words_in_brackets_are_strings(value):
    def written(part):
        return f"[{','.join(map(written, part))}]" if isinstance(part, list) else str(part)

    def known(part):
        if isinstance(part, list):
            return [known(inner) for inner in part]
        return {"true": True, "false": False, "none": None}.get(str(part).lower(), part)

    text = written(value)
    if isinstance(value, list) or text.isidentifier():
        assert parse_value(text) == known(value)


def test_kinds_come_from_the_signature():
    assert accepted_types(ISTA, "lambd") == {float}
    assert accepted_types(ISTA, "nothing") is None
    assert accepted_types(None, "lambd") is None
    assert read(RawText("a,b"), {list[str], type(None)}) == ["a", "b"]
    assert read(RawText("2024,2025"), {list[str]}) == ["2024", "2025"]
    assert read(RawText("[1, two]"), {list[str]}) == ["1", "two"]
    assert read(RawText("1"), {str, list}) == 1  # either: as Python reads it
