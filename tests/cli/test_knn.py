"""``knn``, by running it."""

import json

import pytest


def test_knn(run_tool, debug_checkpoint, tmp_path):
    done = run_tool("knn", "debug", debug_checkpoint, "--k", 5, "--work-dir", tmp_path)
    assert done.code == 0, done.output
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["kind"], result["k"], result["last"]["num_samples"]) == ("k-NN", 5, 450)

    from sklearn.neighbors import KNeighborsClassifier

    from crate_mm import init_model
    from crate_mm.engine import load_config
    from crate_mm.engine.features import build_loader
    from crate_mm.evaluation import extract_features

    model, cfg = init_model("debug", debug_checkpoint), load_config("debug")
    (train, labels, _), (test, truth, _) = (extract_features(model, build_loader(cfg, s)) for s in ("train", "test"))
    theirs = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(train, labels)
    assert result["last"]["top1"] == pytest.approx(100 * theirs.score(test, truth), abs=0.5)  # ties by rounding
