"""Classes that do not agree are told by their names and the split, with advice that does not contradict itself."""

import pytest

from crate_mm.engine import Runner, load_config
from crate_mm.engine.loading.classes import check_same_classes
from tests.conftest import make_image_tree

SMALL = {
    "model.backbone.arch": dict(embed_dim=24, depth=1, num_heads=3),
    "model.backbone.img_size": 32,
    "model.backbone.patch_size": 8,
    "train_dataloader.dataset.transforms.0.size": 32,
    "val_dataloader.dataset.transforms": [dict(type="Resize", size=(32, 32))],
    "global_batch_size": 4,
    "train_dataloader.num_workers": 0,
    "val_dataloader.num_workers": 0,
}


@pytest.mark.parametrize(
    ("lost", "num_classes", "message"),
    [
        ("val/n00000001", 3, "the validation data lacks the class n00000001 of training data: their classes must be"),
        ("train/n00000001", 2, "the validation data has the class n00000001, unknown to training data"),
        ("train/n00000001", 3, r"the data has 2 classes .*: set --cfg-options model.head.num_classes=2"),
        ("val/n00000001", 2, r"the data has 3 classes .*: set --cfg-options model.head.num_classes=3"),
    ],
)
def test_a_class_that_one_split_lacks_is_named(tmp_path, lost, num_classes, message):
    root = make_image_tree(tmp_path / "data")
    for file in (root / lost).iterdir():
        file.unlink()
    (root / lost).rmdir()
    cfg = load_config("crate_tiny_in1k", {**SMALL, "data_root": str(root), "model.head.num_classes": num_classes})
    cfg.work_dir = str(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).build_for_training()


def test_a_test_on_other_classes_gives_no_advice_that_makes_it_worse(tmp_path):
    cfg = load_config("debug", {"model.head.num_classes": 7})
    cfg.work_dir = str(tmp_path)
    with pytest.raises(
        ValueError, match=r"the test data has 10 classes .* use data with the classes that the model was"
    ):
        Runner.from_cfg(cfg).build_for_testing()


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ("abc", "ab", "the val lacks the class c of train: their classes must be the same"),
        ("ab", "abcdefgh", "the val has the classes c, d, e, f, g and 1 more, unknown to train: "),
        ("abc", "ax", "the val lacks the classes b, c of train and has the class x, unknown to train: "),
        ("abc", "acb", "class 1 is b in train and c in the val: their classes must be the same"),
        ("abc", "axc", "class 1 is b in train and x in the val: their classes must be the same"),
    ],
)
def test_what_differs_is_said(one, other, message):
    check_same_classes("train", list(one), "val", list(one))
    check_same_classes("train", list(one), "val", None)
    with pytest.raises(ValueError, match=message):
        check_same_classes("train", list(one), "val", list(other))
