"""Files that are missing, damaged, foreign or hostile; loading that drops nothing."""

import os
import pickle
import re
import shutil

import pytest
import torch
from torch import nn

from crate_mm.api import init_model
from crate_mm.checkpoints import open_checkpoint
from crate_mm.checkpoints.publish import publish
from crate_mm.checkpoints.readers.pth import verify_checkpoint
from crate_mm.engine import CheckpointError, load_weights, newest_checkpoint, read_checkpoint


class Mark:
    """A pickle that would make a file when loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", ["zip", 2, 4])
def test_a_pickle_that_runs_code_is_refused(tmp_path, protocol):
    path, mark = tmp_path / "evil.pth", tmp_path / "mark"
    contents = {"state_dict": {}, "evil": Mark(mark)}
    if protocol == "zip":
        torch.save(contents, path)
    else:
        path.write_bytes(pickle.dumps(contents, protocol=protocol))
    # PyTorch gives up on protocol 4 before it comes to what the pickle wants to call.
    message = "is damaged or not a checkpoint" if protocol == 4 else r"refused: loading it would run code .*mkdir"
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(contents))
    assert mark.exists()  # it would have


def test_a_missing_file_names_its_neighbours(debug_checkpoint):
    with pytest.raises(CheckpointError, match=r"epoch_9.pth does not exist; .* holds best_.*, epoch_1.pth"):
        read_checkpoint(debug_checkpoint.with_name("epoch_9.pth"))


def test_what_is_no_file_is_neither_waited_for_nor_taken(debug_checkpoint, tmp_path):
    os.mkfifo(tmp_path / "epoch_9.pth")
    (tmp_path / "epoch_8.pth").mkdir()
    (tmp_path / "epoch_7.pth").symlink_to("/dev/zero")
    assert newest_checkpoint(tmp_path) is None
    shutil.copy(debug_checkpoint, tmp_path / "epoch_1.pth")
    assert newest_checkpoint(tmp_path, report=pytest.fail) == tmp_path / "epoch_1.pth"
    with pytest.raises(CheckpointError, match="epoch_9.pth is damaged: .*is not a regular file"):
        verify_checkpoint(tmp_path / "epoch_9.pth")
    for name, words in (("epoch_9.pth", "is not a regular file; "), ("", "is a folder; .* holds epoch_1.pth, ")):
        with pytest.raises(CheckpointError, match=rf"checkpoint {tmp_path / name} {words}"):
            read_checkpoint(tmp_path / name)


def test_a_folder_that_the_hubs_library_has_saved_is_opened(debug_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    publish(open_checkpoint(debug_checkpoint), "saved/model.safetensors")
    wanted = read_checkpoint(debug_checkpoint)["state_dict"]
    for name in ("saved", "saved/", tmp_path / "saved"):
        found = init_model(None, name).state_dict()
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
    (tmp_path / "saved/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="checkpoint saved is a folder"):
        init_model(None, "saved")


def test_a_file_of_something_else_is_named(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds list, not a dict"):
        read_checkpoint(tmp_path / "list.pth")


def test_our_checkpoints_hold_data_only_and_the_architecture(debug_checkpoint):
    checkpoint = read_checkpoint(debug_checkpoint)
    assert checkpoint["meta"]["model"]["backbone"]["arch"] == dict(embed_dim=48, depth=2, num_heads=3)
    assert checkpoint["meta"]["dataset_meta"]["classes"] == list("0123456789")
    assert checkpoint["meta"]["epoch"] == 1
    assert {"optimizer", "param_schedulers", "state_dict", "message_hub"} <= checkpoint.keys()


def test_weights_load_wholly_or_not_at_all():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    good = {key: value + 1 for key, value in before.items()}
    wrong_shape = {**good, "0.weight": torch.zeros(3, 5)}
    missing = {key: value for key, value in good.items() if key != "1.bias"}
    surplus = {**good, "2.bias": torch.zeros(1)}
    for weights, message in (
        (wrong_shape, r"file.pth does not fit the model: 0.weight is \(3, 5\) in the file and \(3, 2\) in the model"),
        (missing, "1.bias is missing"),
        (surplus, "2.bias is unexpected"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_weights(model, {"state_dict": weights}, source="file.pth")
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    load_weights(model, {"state_dict": {f"module.{key}": value for key, value in good.items()}})
    assert all(torch.equal(value, good[key]) for key, value in model.state_dict().items())


def test_the_newest_checkpoint_is_found_by_its_number(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / "last_checkpoint").write_text("/elsewhere/epoch_99.pth")
    for name in ("epoch_11.pth.part", "best_eval_top1_epoch_12.pth", "epoch_13_iter.pth", "epoch_x.pth"):
        (tmp_path / name).touch()
    ordered = ["epoch_0_iter_5.pth", "epoch_2.pth", "epoch_9.pth", "epoch_9_iter_91.pth", "epoch_10.pth"]
    for number in (2, 0, 4, 1, 3):
        torch.save({"meta": {}}, tmp_path / ordered[number])
        newest = max(set(ordered) & set(os.listdir(tmp_path)), key=ordered.index)
        assert newest_checkpoint(tmp_path) == tmp_path / newest


DAMAGES = {
    "truncated": lambda b: b[: len(b) // 2],
    "a flipped bit": lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 1]) + b[len(b) // 2 + 1 :],
    "emptied": lambda b: b"",
    "zeros": lambda b: bytes(len(b)),
    "its beginning": lambda b: b[:100],
    "of another kind": lambda b: b"no checkpoint",
}


@pytest.mark.slow
def test_any_changed_byte_is_found_or_changes_nothing(tmp_path):
    """In the archive's tables too, of which PyTorch and Python read different parts."""
    path = tmp_path / "epoch_1.pth"
    contents = {"state_dict": {"w": torch.arange(4.0)}}
    torch.save(contents, path)
    whole = path.read_bytes()
    found = 0
    for place in range(0, len(whole), 2):  # the numbers in the tables have two bytes or more
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            verify_checkpoint(path)
        except CheckpointError:
            found += 1
        else:
            assert torch.equal(read_checkpoint(path)["state_dict"]["w"], contents["state_dict"]["w"]), place
    assert found > len(whole) // 8  # the rest is padding, times and the like


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, damage):
    for epoch in (1, 2):
        torch.save({"state_dict": {"w": torch.rand(1000)}}, tmp_path / f"epoch_{epoch}.pth")
    newest = tmp_path / "epoch_2.pth"
    newest.write_bytes(damage(newest.read_bytes()))
    reports = []
    assert newest_checkpoint(tmp_path, reports.append) == tmp_path / "epoch_1.pth"
    assert len(reports) == 1
    assert re.search("epoch_2.pth is damaged: .*; trying the checkpoint before it", reports[0])
    with pytest.raises(CheckpointError, match=r"epoch_2.pth is damaged"):
        read_checkpoint(newest)
    (tmp_path / "epoch_1.pth").unlink()
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged \(epoch_2.pth\)"):
        newest_checkpoint(tmp_path, reports.append)
