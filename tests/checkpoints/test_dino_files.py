"""Files in the layouts of DINO and DINOv2, which SimDINO has too: their features are those of a plain forward pass."""

import argparse

import pytest
import torch
import torch.nn.functional as F

from crate_mm import from_official, init_model
from crate_mm.checkpoints import CheckpointError, open_checkpoint
from crate_mm.checkpoints.fit import transfer_backbone
from crate_mm.config import load_config
from crate_mm.inference.standalone import build_transferred_model
from crate_mm.models import SelfDistillation
from tests.official import official_state_dict

DIM, DEPTH, HEADS, SIDE, PATCH = 24, 4, 3, 32, 8


def shapes(registers=0, layer_scale=False, chunk=None):
    """The names of DINO's ViT, of DINOv2's with registers and layer scale; with chunks of layers, as it trains."""
    named = {"cls_token": [1, 1, DIM], "pos_embed": [1, 1 + (SIDE // PATCH) ** 2, DIM]}
    named |= {"patch_embed.proj.weight": [DIM, 3, PATCH, PATCH], "patch_embed.proj.bias": [DIM]}
    named |= {"norm.weight": [DIM], "norm.bias": [DIM]}
    named |= {"register_tokens": [1, registers, DIM]} if registers else {}
    named |= {"mask_token": [1, DIM]} if layer_scale else {}
    for layer in range(DEPTH):
        block = f"blocks.{layer}" if chunk is None else f"blocks.{layer // chunk}.{layer}"
        linears = {"attn.qkv": (3 * DIM, DIM), "attn.proj": (DIM, DIM)}
        linears |= {"mlp.fc1": (4 * DIM, DIM), "mlp.fc2": (DIM, 4 * DIM)}
        for name, (out, width) in linears.items():
            named |= {f"{block}.{name}.weight": [out, width], f"{block}.{name}.bias": [out]}
        for name in ("norm1", "norm2"):
            named |= {f"{block}.{name}.weight": [DIM], f"{block}.{name}.bias": [DIM]}
        if layer_scale:
            named |= {f"{block}.ls1.gamma": [DIM], f"{block}.ls2.gamma": [DIM]}
    return named


def weights(seed, **options):
    values = official_state_dict(shapes(**options))
    return {name: value + 0.01 * seed for name, value in values.items()}


def plain_features(w, images):
    """The CLS token of DINO's and DINOv2's code, written out: registers have no positions."""
    w = {".".join(p for i, p in enumerate(k.split(".")) if not (i == 1 and k.split(".")[2].isdigit()))
         if k.startswith("blocks.") else k: v for k, v in w.items()}  # fmt: skip

    def norm(x, name):
        return F.layer_norm(x, (DIM,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    z = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], PATCH).flatten(2).mT
    z = torch.cat([w["cls_token"].expand(len(images), -1, -1), z], dim=1) + w["pos_embed"]
    if "register_tokens" in w:
        z = torch.cat([z[:, :1], w["register_tokens"].expand(len(images), -1, -1), z[:, 1:]], dim=1)
    for layer in range(DEPTH):
        block = f"blocks.{layer}"
        qkv = linear(norm(z, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(-1, (3, HEADS, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = (q @ k.mT / (DIM // HEADS) ** 0.5).softmax(-1) @ v
        update = linear(attention.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        z = z + w.get(f"{block}.ls1.gamma", 1) * update
        hidden = F.gelu(linear(norm(z, f"{block}.norm2"), f"{block}.mlp.fc1"))
        z = z + w.get(f"{block}.ls2.gamma", 1) * linear(hidden, f"{block}.mlp.fc2")
    return norm(z, "norm")[:, 0]


def named(weights, prefix, head):
    contents = {f"{prefix}backbone.{name}": value for name, value in weights.items()}
    return {**contents, f"{prefix}{head}.mlp.0.weight": torch.ones(2, DIM).double()}


V2 = dict(registers=4, layer_scale=True)
FILES = {  # options of the weights, and the file's contents from those of two models
    "simdino": (
        {},
        lambda student, teacher: {
            "student": named(student, "_orig_mod.module.", "head"),
            "teacher": named(teacher, "_orig_mod.", "head"),
            "optimizer": {"state": {}, "param_groups": []},
            "epoch": 100,
            "args": argparse.Namespace(arch="vit_base"),
        },
    ),
    "simdinov2": (V2, lambda student, teacher: {"teacher": named(teacher, "", "dino_head")}),
    "simdinov2_chunks": ({**V2, "chunk": 2}, lambda student, teacher: {"teacher": named(teacher, "", "dino_head")}),
    "dinov2": (V2, lambda student, teacher: teacher),
    "dinov2_chunks": ({**V2, "chunk": 2}, lambda student, teacher: teacher),
    "dinov2_without_registers": (dict(layer_scale=True), lambda student, teacher: teacher),
}


@pytest.fixture(params=FILES)
def case(request, tmp_path):
    """The file, and the weights of its student and its teacher."""
    options, contents = FILES[request.param]
    student, teacher = weights(1, **options), weights(2, **options)
    path = tmp_path / "official.pth"
    torch.save(contents(student, teacher), path)
    return path, student, teacher, options


@pytest.fixture
def images():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).double()


def features(model, images):
    with torch.no_grad():
        return model.double()(images, mode="features")


def test_features_are_those_of_the_forward_pass_written_out(case, images):
    path, student, teacher, options = case
    model = from_official(path, num_heads=HEADS)
    torch.testing.assert_close(features(model, images), plain_features(teacher, images), rtol=1e-9, atol=1e-12)
    assert model.backbone.num_registers == options.get("registers", 0)
    assert model.backbone.layout(images) == (1 + options.get("registers", 0), SIDE // PATCH, SIDE // PATCH)
    assert model.backbone(images).shape == (2, 17, DIM)
    if "student" in torch.load(path, weights_only=False):
        ours = features(from_official(path, num_heads=HEADS, part="student"), images)
        torch.testing.assert_close(ours, plain_features(student, images), rtol=1e-9, atol=1e-12)


def test_what_is_not_used_is_said(case):
    path, *_, options = case
    notes = " ".join(open_checkpoint(path, num_heads=HEADS).notes)
    assert ("mask_token" in notes) == bool(options)
    if options and "teacher" not in torch.load(path, weights_only=False):
        assert "head" not in notes
    else:
        assert "head.mlp.0.weight" in notes
        assert "the weights are the teacher's" in notes


@pytest.mark.parametrize("part", [None, "teacher", "student"])
def test_a_transfer_takes_the_part_that_it_names(tmp_path, images, part):
    contents = FILES["simdino"][1]
    both = {"student": weights(1), "teacher": weights(2)}
    torch.save(contents(**both), tmp_path / "simdino.pth")
    arch = dict(embed_dim=DIM, depth=DEPTH, num_heads=HEADS)
    backbone = dict(type="ViT", arch=arch, img_size=SIDE, patch_size=PATCH)
    cfg = load_config("debug", {"model.backbone": backbone, "transfer_from": part})
    cfg.model.preprocessor = dict(type="ImagePreprocessor")
    checkpoint = open_checkpoint(tmp_path / "simdino.pth", num_heads=HEADS)
    model, report = build_transferred_model(cfg, checkpoint)
    expected = plain_features(both[part or "teacher"], images)
    torch.testing.assert_close(features(model.cpu(), images), expected, rtol=1e-5, atol=1e-5)
    assert not report.resized
    task = SelfDistillation(dict(backbone, img_size=16), hidden_dim=8, out_dim=4)
    report = transfer_backbone(task, checkpoint, part=part)
    assert list(report.resized) == ["backbone.encoder.pos_embedding"]
    for name, value in task.teacher["backbone"].state_dict().items():
        assert torch.equal(value, task.backbone.state_dict()[name])


@pytest.mark.parametrize("part", ["backbone", "center"])
def test_a_part_that_the_file_lacks_is_refused(tmp_path, part):
    torch.save(FILES["simdinov2"][1](None, weights(2, **V2)), tmp_path / "teacher.pth")
    checkpoint = open_checkpoint(tmp_path / "teacher.pth", num_heads=HEADS)
    task = init_model("debug")
    with pytest.raises(CheckpointError, match=f"has no part '{part}'.*teacher"):
        transfer_backbone(task, checkpoint, part=part)
    with pytest.raises(CheckpointError, match=f"has no part '{part}', only teacher"):
        open_checkpoint(tmp_path / "teacher.pth", num_heads=HEADS, part=part)


def test_other_networks_of_the_layout_are_refused():
    """DINOv2's giant has another MLP; an unknown size needs its heads."""
    giant = weights(0, **V2) | {"blocks.0.mlp.w12.weight": torch.zeros(2, DIM).double()}
    with pytest.raises(CheckpointError, match=r"'blocks.0.mlp.w12.weight' is not a parameter of the code of DINO"):
        from_official(giant, num_heads=HEADS)
    with pytest.raises(CheckpointError, match="no ViT of width 24 and depth 4 is published: give num_heads"):
        from_official(weights(0, **V2))
