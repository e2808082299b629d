"""``knn``, by running it."""

import json

import pytest
import torch
from mmengine.config import Config
from sklearn.neighbors import KNeighborsClassifier

from crate_mm import init_model
from crate_mm.checkpoints import CheckpointError, as_checkpoint, open_checkpoint, read_checkpoint
from crate_mm.cli.knn import describe
from crate_mm.engine import load_config
from crate_mm.evaluation import extract_features
from crate_mm.inference.standalone import build_loader, build_transferred_model
from crate_mm.models import SelfDistillation
from crate_mm.registry import MODELS


@pytest.mark.slow
def test_knn(run_main, debug_checkpoint, tmp_path):
    done = run_main("knn", "debug", debug_checkpoint, "--k", 5, "--work-dir", tmp_path)
    assert "  features of its backbone: 24 tensors loaded unchanged\n" in done.output
    assert "  not used: its head, because the neighbors vote on the class\n" in done.output
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["kind"], result["k"], result["last"]["num_samples"]) == ("k-NN", 5, 450)

    model, cfg = init_model("debug", debug_checkpoint), load_config("debug")
    (train, labels, _), (test, truth, _) = (extract_features(model, build_loader(cfg, s)) for s in ("train", "test"))
    theirs = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(train, labels)
    assert result["last"]["top1"] == pytest.approx(100 * theirs.score(test, truth), abs=0.5)  # ties by rounding


@pytest.mark.parametrize("has_teacher", [True, False])
def test_what_is_used_of_a_self_distillation(has_teacher):
    cfg, backbone = load_config("debug"), load_config("debug").model.backbone
    sizes = dict(hidden_dim=8, out_dim=4, preprocessor=dict(mean=(0.5,), std=(0.5,)))
    contents = {"state_dict": SelfDistillation(backbone, **sizes).state_dict(), "meta": {"transfer_from": "teacher"}}
    if has_teacher:
        cfg.model = dict(type="SelfDistillation", backbone=backbone, **sizes)
    lines = describe(build_transferred_model(cfg, as_checkpoint(contents))[1], "teacher").split("\n")
    assert lines[0].startswith("  features of its teacher: ")
    parts = "backbone, projector" if has_teacher else "projector, teacher.projector"
    assert lines[1:] == [f"  not used: its {parts}, because the neighbors vote on the class"]


@pytest.mark.parametrize("change", ["missing", "of another shape"])
def test_features_of_a_partly_random_backbone_are_refused(debug_checkpoint, tmp_path, change):
    contents, name = read_checkpoint(debug_checkpoint), "backbone.embedding.cls_token"
    assert name in contents["state_dict"], list(contents["state_dict"])[:5]
    if change == "missing":
        del contents["state_dict"][name]
    else:
        contents["state_dict"][name] = contents["state_dict"][name][..., :-1].clone()
    torch.save(contents, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=rf"would be partly random: .*{name}"):
        build_transferred_model(load_config("debug"), open_checkpoint(tmp_path / "part.pth"))


def own_model(head, grid):
    backbone = dict(type="CRATE", arch=dict(embed_dim=24, depth=1, num_heads=3), img_size=grid, patch_size=4)
    return dict(type="ImageClassifier", backbone=backbone, head=dict(type="LinearHead", num_classes=head))


@pytest.mark.parametrize(("grid", "resized"), [((8, 32), False), ((16, 16), True)])
def test_a_checkpoint_of_the_same_model_fills_all_of_it_and_one_of_another_grid_does_not(grid, resized):
    """2 x 8 and 4 x 4 patches have weights of the same shapes."""

    described = own_model(5, (8, 32))
    state = MODELS.build(described).state_dict()
    checkpoint = as_checkpoint({"meta": {"model": described}, "state_dict": state})
    model, report = build_transferred_model(Config(dict(model=own_model(5, grid))), checkpoint)
    positions = "backbone.embedding.pos_embed"
    assert (positions in report.resized) == resized
    assert torch.equal(model.state_dict()[positions], state[positions]) != resized
    assert torch.equal(model.head.fc.weight, state["head.fc.weight"]) != resized
    assert "head.fc.weight" in report.dropped
