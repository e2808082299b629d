"""Official checkpoints: every key and shape is checked. (That the numbers agree is test_reference's.)"""

import pytest
import torch

from crate_mm.conversion import convert_official_state_dict, official_model_config
from crate_mm.engine import load_weights
from crate_mm.models import ARCHS
from crate_mm.registry import MODELS


def official(embed_dim=384, depth=12, img_size=32, patch_size=8, classes=7):
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
    checkpoint = official(size.embed_dim, size.depth, img_size=64, patch_size=16, classes=9)
    if wrapped:
        checkpoint = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in checkpoint.items()}}
    config = official_model_config(checkpoint)
    assert config["backbone"] == dict(type="CRATE", arch=arch, img_size=64, patch_size=16)
    assert config["head"]["num_classes"] == 9
    with torch.device("meta"):
        load_weights(MODELS.build(config), convert_official_state_dict(checkpoint))


def test_a_size_of_ones_own_needs_the_heads():
    checkpoint = official(embed_dim=48, depth=2)
    with pytest.raises(ValueError, match="no published CRATE has width 48, depth 2"):
        convert_official_state_dict(checkpoint)
    assert official_model_config(checkpoint, num_heads=3)["backbone"]["arch"]["num_heads"] == 3
    with pytest.raises(ValueError, match="num_heads 5 does not divide"):
        convert_official_state_dict(checkpoint, num_heads=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("cls_token"), "missing .*cls_token"),
        (lambda c: c.pop("transformer.layers.3.1.fn.weight"), "missing .*blocks.3.ista.dictionary"),
        (lambda c: c.update({"extra.weight": torch.zeros(1)}), "'extra.weight' is not a parameter of the official"),
        (
            lambda c: c.update({"mlp_head.0.bias": torch.zeros(3)}),
            r"head.norm.bias has shape \(3,\), expected \(384,\)",
        ),
        (lambda c: c.update({"cls_token": "text"}), "'cls_token' holds str"),
        (lambda c: c.update({"transformer.layers.x.1.fn.weight": torch.zeros(1)}), "is not a parameter"),
        (lambda c: c.pop("pos_embedding"), "no tensor 'pos_embedding' in the checkpoint"),
        (lambda c: c.update({"pos_embedding": torch.zeros(1, 16, 384)}), "not a square image"),
        (lambda c: c.update({"pos_embedding": torch.zeros(7)}), "pos_embedding has shape"),
    ],
)
def test_nothing_is_dropped_or_made_up(change, message):
    checkpoint = official()
    change(checkpoint)
    with pytest.raises(ValueError, match=message):
        convert_official_state_dict(checkpoint)
