"""``knn``, by running it."""

import json

import pytest


def test_knn(run_tool, debug_checkpoint, tmp_path):
    done = run_tool("knn", "debug", debug_checkpoint, "--k", 5, "--work-dir", tmp_path)
    assert done.code == 0, done.output
    assert "  features of its backbone: 24 tensors loaded unchanged\n" in done.output
    assert "  not used: its head, because the neighbors vote on the class\n" in done.output
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["kind"], result["k"], result["last"]["num_samples"]) == ("k-NN", 5, 450)

    from sklearn.neighbors import KNeighborsClassifier

    from crate_mm import init_model
    from crate_mm.engine import load_config
    from crate_mm.evaluation import extract_features
    from crate_mm.inference.standalone import build_loader

    model, cfg = init_model("debug", debug_checkpoint), load_config("debug")
    (train, labels, _), (test, truth, _) = (extract_features(model, build_loader(cfg, s)) for s in ("train", "test"))
    theirs = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(train, labels)
    assert result["last"]["top1"] == pytest.approx(100 * theirs.score(test, truth), abs=0.5)  # ties by rounding


@pytest.mark.parametrize("change", ["missing", "of another shape"])
def test_features_of_a_partly_random_backbone_are_refused(debug_checkpoint, tmp_path, change):
    import torch

    from crate_mm.checkpoints import CheckpointError, open_checkpoint, read_checkpoint
    from crate_mm.engine import load_config
    from crate_mm.inference.standalone import build_transferred_model

    contents, name = read_checkpoint(debug_checkpoint), "backbone.embedding.cls_token"
    assert name in contents["state_dict"], list(contents["state_dict"])[:5]
    if change == "missing":
        del contents["state_dict"][name]
    else:
        contents["state_dict"][name] = contents["state_dict"][name][..., :-1].clone()
    torch.save(contents, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=rf"would be partly random: .*{name}"):
        build_transferred_model(load_config("debug"), open_checkpoint(tmp_path / "part.pth"))
