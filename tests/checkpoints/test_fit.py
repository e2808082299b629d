"""Initialising from a checkpoint of another task."""

import pytest
import torch

from crate_mm.checkpoints import as_checkpoint
from crate_mm.checkpoints.fit import transfer_backbone
from crate_mm.checkpoints.resize import resize_position_embedding
from crate_mm.engine import CheckpointError
from crate_mm.models import ImageClassifier

MICRO = dict(embed_dim=24, depth=2, num_heads=3)
NORM = {"CRATE": True, "ViT": False}
POSITIONS = {"CRATE": "backbone.embedding.pos_embed", "ViT": "backbone.encoder.pos_embedding"}


def build(kind="CRATE", classes=7, **backbone):
    backbone = {"arch": MICRO, "img_size": 16, "patch_size": 4, **backbone}
    half = (0.5,) * backbone.get("in_channels", 3)
    return ImageClassifier(
        backbone=dict(type=kind, **backbone),
        head=dict(type="LinearHead", num_classes=classes, norm=NORM[kind]),
        preprocessor=dict(mean=half, std=half),
    )


def saved(model, /, **meta):
    return {"meta": meta, "state_dict": {key: value.clone() for key, value in model.state_dict().items()}}


@pytest.mark.parametrize("kind", NORM)
def test_the_backbone_is_taken_over_and_the_head_starts_anew(kind):
    source, model = build(kind), build(kind, classes=5)
    head = {key: value.clone() for key, value in model.head.state_dict().items()}
    result = transfer_backbone(model, as_checkpoint(saved(source)))
    for key, value in source.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], value), key
    for key, value in model.head.state_dict().items():
        assert torch.equal(value, head[key]), key
    assert {key.partition(".")[0] for key in result.loaded} == {"backbone"}
    assert result.resized == {}
    assert result.dropped.keys() == result.new.keys() == {f"head.{key}" for key in head}
    assert result.dropped["head.fc.weight"] == "7 x 24"
    assert result.new["head.fc.weight"] == "5 x 24"


@pytest.mark.parametrize("kind", NORM)
@pytest.mark.parametrize("size", [8, 32])
def test_position_embeddings_follow_the_grid(kind, size):
    source, model = build(kind), build(kind, img_size=size)
    result = transfer_backbone(model, as_checkpoint(saved(source)))
    name = POSITIONS[kind]
    old, new = source.state_dict()[name], model.state_dict()[name]
    assert result.resized == {name: f"4 x 4 -> {size // 4} x {size // 4} patches, bicubic"}
    assert torch.equal(new[:, 0], old[:, 0]), "the CLS token's is kept"
    assert new.shape[1] == 1 + (size // 4) ** 2
    assert torch.isfinite(model(torch.randn(2, 3, size, size))).all()


def test_an_equal_grid_is_left_alone():
    embedding = torch.randn(1, 13, 6)
    assert torch.equal(resize_position_embedding(embedding, (3, 4), (3, 4)), embedding)


def test_a_plane_is_resized_to_a_plane():
    """What is linear in row and column stays so away from the border: rows and columns are not mixed up."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
    plane = torch.stack([rows, columns], -1).flatten(0, 1)
    embedding = torch.cat([torch.full((1, 2), 9.0), plane])[None]
    resized = resize_position_embedding(embedding, (8, 6), (16, 12))
    assert resized[0, 0].tolist() == [9.0, 9.0]
    grid = resized[0, 1:].view(16, 12, 2)[4:-4, 4:-4]
    expected = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(12.0), indexing="ij"), -1) / 2 - 0.25
    torch.testing.assert_close(grid, expected[4:-4, 4:-4])


def test_the_grid_is_what_the_checkpoint_says():
    source, model = build(img_size=(8, 32)), build()  # 2 x 8 and 4 x 4 patches: as many
    told = transfer_backbone(
        build(), as_checkpoint(saved(source, model={"backbone": {"img_size": (8, 32), "patch_size": 4}}))
    )
    assert told.resized == {POSITIONS["CRATE"]: "2 x 8 -> 4 x 4 patches, bicubic"}
    assert transfer_backbone(model, as_checkpoint(saved(source))).resized == {}
    with pytest.raises(CheckpointError, match="position embeddings for 8 patches, which do not form a square"):
        transfer_backbone(model, as_checkpoint(saved(build(img_size=(8, 16)))))


def test_other_parts_are_dropped_and_told():
    source, model = build(in_channels=1), build()
    result = transfer_backbone(model, as_checkpoint(saved(source)))
    assert result.dropped["backbone.embedding.proj.weight"] == "24 x 16, the model's is 24 x 48"
    assert "backbone.embedding.proj.weight" in result.new
    assert "backbone.embedding.proj.bias" in result.loaded
    table = result.table()
    assert "loaded   backbone.blocks" in table
    assert "dropped  backbone.embedding.proj.weight" in table


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            build(arch=dict(MICRO, embed_dim=36)),
            "backbone.embedding.cls_token is 1 x 1 x 36, the model's is 1 x 1 x 24",
        ),
        (build("ViT"), "backbone.class_token is 1 x 1 x 24: the model has no parameter of this name"),
        (torch.nn.Linear(2, 2), "weight is 2 x 2: the model has no parameter of this name"),
    ],
    ids=["width", "kind", "other"],
)
def test_a_checkpoint_of_another_model_is_refused(source, message):
    model = build()
    before = saved(model)["state_dict"]
    with pytest.raises(CheckpointError, match=f"is of another model: it fills .* of the backbone's .*; {message}"):
        transfer_backbone(model, as_checkpoint(saved(source)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
