"""Which epoch is the best, which files stay, and what of an earlier run goes aside."""

import shutil

import pytest
import torch

from crate_mm.checkpoints import read_checkpoint
from tests.training import (
    train,
)


def test_checkpoints_are_where_resume_looks(tmp_path):
    with pytest.raises(ValueError, match="leave out by_epoch"):
        train(tmp_path, default_hooks__checkpoint__by_epoch=False)


@pytest.mark.slow
def test_only_the_newest_checkpoints_and_the_best_are_kept(tmp_path):
    train(tmp_path, train_cfg__max_epochs=5, default_hooks__checkpoint__max_keep_ckpts=2)
    assert sorted(p.name for p in tmp_path.glob("epoch_*")) == ["epoch_4.pth", "epoch_5.pth"]
    assert len(list(tmp_path.glob("best_*"))) == 1


@pytest.mark.slow
def test_a_copied_work_folder_leaves_the_original_alone(tmp_path):
    train(tmp_path / "a", train_cfg__max_epochs=1)
    (original,) = (tmp_path / "a").glob("best_*")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    checkpoint = read_checkpoint(tmp_path / "b" / "epoch_1.pth")
    checkpoint["message_hub"]["runtime_info"]["best_score"] = -1.0  # for the next epoch to be better
    torch.save(checkpoint, tmp_path / "b" / "epoch_1.pth")
    train(tmp_path / "b", resume=True, train_cfg__max_epochs=2)
    assert original.exists()
    (best,) = (tmp_path / "b").glob("best_*")
    assert best.name != original.name  # it did improve, and replaced its own copy
