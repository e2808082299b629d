"""Checkpoints of other code bases: every key and shape is checked, and no number of heads is made up. (That the numbers
agree is test_reference's.)"""

import pytest
import torch
import torchvision

from crate_mm.checkpoints import as_checkpoint
from crate_mm.checkpoints.fit import load_strict
from crate_mm.engine import CheckpointError
from crate_mm.models import ARCHS
from crate_mm.registry import MODELS


def official(embed_dim=384, depth=12, img_size=64, patch_size=16, classes=7):
    """An official checkpoint's names and shapes, as empty tensors that take no memory."""
    d, patch_dim = embed_dim, 3 * patch_size**2
    shapes = {
        "cls_token": (1, 1, d),
        "pos_embedding": (1, (img_size // patch_size) ** 2 + 1, d),
        **{f"to_patch_embedding.1.{p}": (patch_dim,) for p in ("weight", "bias")},
        "to_patch_embedding.2.weight": (d, patch_dim),
        "to_patch_embedding.2.bias": (d,),
        **{f"{name}.{p}": (d,) for name in ("to_patch_embedding.3", "mlp_head.0") for p in ("weight", "bias")},
        "mlp_head.1.weight": (classes, d),
        "mlp_head.1.bias": (classes,),
    }
    for layer in range(depth):
        name = f"transformer.layers.{layer}"
        shapes |= {f"{name}.{i}.norm.{p}": (d,) for i in (0, 1) for p in ("weight", "bias")}
        shapes |= {f"{name}.{key}.weight": (d, d) for key in ("0.fn.qkv", "0.fn.to_out.0", "1.fn")}
        shapes[f"{name}.0.fn.to_out.0.bias"] = (d,)
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("wrapped", [True, False])
def test_published_sizes_are_read_off_the_shapes(arch, wrapped):
    size = ARCHS[arch]
    contents = official(size.embed_dim, size.depth, classes=9)
    if wrapped:
        contents = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in contents.items()}}
    opened = as_checkpoint(contents)
    assert opened.model["backbone"] == dict(type="CRATE", arch=arch, img_size=64, patch_size=16)
    assert opened.model["head"]["num_classes"] == 9
    assert f"{size.num_heads} heads" in opened.meta["assumed"]
    with torch.device("meta"):
        load_strict(MODELS.build(opened.model), opened)


@pytest.mark.parametrize(
    ("made", "seen"),
    [
        (dict(embed_dim=48, depth=2), "width 48, depth 2"),
        (dict(embed_dim=768, img_size=224, patch_size=8), "patches of 8 pixels"),  # the authors' demo, segmentation
    ],
)
def test_heads_that_shapes_do_not_tell_are_asked_for(made, seen):
    opened = as_checkpoint(official(**made))
    assert opened.model is None
    assert seen in opened.unknown_reason
    assert "give num_heads, which shapes do not determine" in opened.unknown_reason
    heads = as_checkpoint(official(**made), num_heads=6)
    assert heads.model["backbone"]["arch"]["num_heads"] == 6
    with pytest.raises(CheckpointError, match="num_heads 5 does not divide"):
        as_checkpoint(official(**made), num_heads=5)


def test_the_demo_weights_further_head_is_left_out_and_said():
    contents = official(embed_dim=768, classes=768) | {"head.weight": torch.empty(21842, 768, device="meta")}
    opened = as_checkpoint({"model": contents})
    assert "patches of 16 pixels with a further head" in opened.unknown_reason
    assert any("weights that the model does not use: head.weight" in note for note in opened.notes)
    assert "head.weight" not in opened.weights


def test_without_heads_the_config_says_them():
    """The file is loaded into a model that the user has described."""
    opened = as_checkpoint(official(embed_dim=48, depth=2))
    model = dict(type="CRATE", arch=dict(embed_dim=48, depth=2, num_heads=4), img_size=64)
    with torch.device("meta"):
        whole = dict(type="ImageClassifier", backbone=model, head=dict(type="LinearHead", num_classes=7))
        load_strict(MODELS.build(whole), opened)
    assert any("does not determine its model, so the config must" in note for note in opened.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("cls_token"), "missing .*cls_token"),
        (lambda c: c.pop("transformer.layers.3.1.fn.weight"), "missing .*blocks.3.sparsify.dictionary"),
        (lambda c: c.update({"extra.weight": torch.zeros(1)}), "'extra.weight' is not a parameter of the official"),
        (
            lambda c: c.update({"mlp_head.0.bias": torch.zeros(3)}),
            r"head.norm.bias has shape \(3,\), expected \(384,\)",
        ),
        (lambda c: c.update({"cls_token": "text"}), "its cls_token is str, not a tensor"),
        (lambda c: c.update({"transformer.layers.x.1.fn.weight": torch.zeros(1)}), "is not a parameter"),
        (lambda c: c.update({"pos_embedding": torch.zeros(1, 16, 384)}), "do not form a square"),
        (lambda c: c.update({"pos_embedding": torch.zeros(7)}), "pos_embedding has shape"),
        (lambda c: c.update({"to_patch_embedding.2.weight": torch.zeros(384, 10)}), "not square RGB patches"),
    ],
)
def test_nothing_is_dropped_or_made_up(change, message):
    checkpoint = official()
    change(checkpoint)
    with pytest.raises(ValueError, match=message):
        as_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32"])
def test_torchvisions_own_vit_is_translated(name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
    opened = as_checkpoint(theirs.state_dict())
    assert opened.model["backbone"]["patch_size"] == int(name[-2:])
    assert opened.model["backbone"]["arch"] == dict(embed_dim=768, depth=12, num_heads=12)
    with torch.device("meta"):
        load_strict(MODELS.build(opened.model), opened)


def test_torchvisions_vit_and_ours_compute_the_same():
    torch.manual_seed(0)
    theirs = torchvision.models.VisionTransformer(32, 16, 2, 4, 48, 192, num_classes=5).eval()
    torch.nn.init.normal_(theirs.heads.head.weight)
    opened = as_checkpoint(theirs.state_dict(), num_heads=4)
    assert as_checkpoint(theirs.state_dict()).unknown_reason.startswith(
        "torchvision publishes no ViT of width 48 and depth 2"
    )
    ours = MODELS.build(opened.model).eval()
    load_strict(ours, opened)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_a_file_that_no_family_takes_keeps_its_names():
    """One that shares a name with the official code's may be of a model of one's own."""
    mine = {"pos_embedding": torch.zeros(1, 4, 8), "blocks.0.weight": torch.zeros(8, 8)}
    opened = as_checkpoint(dict(mine))
    assert opened.weights.keys() == mine.keys()
    assert (opened.model, opened.notes) == (None, [])
