"""What result.json and a checkpoint say of a run."""

import shutil
import subprocess
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader

from crate_mm.checkpoints.validate import check_form
from crate_mm.engine import load_config
from crate_mm.engine.checkpointing.results import checkpoint_metadata, code_commit, dataset_name
from tests.training import result_of, run, train


def test_a_model_that_cannot_be_traced_still_trains(tmp_path, monkeypatch):
    from crate_mm.engine.checkpointing import results

    def fail(*args):
        raise RuntimeError("no tracing")

    monkeypatch.setattr(results, "count_complexity", fail)
    train(tmp_path, train_cfg__max_epochs=1)
    result = result_of(tmp_path)
    assert (result["flops"], result["parameters"] > 0) == (None, True)


def test_odd_transforms_of_a_dataset_of_ones_own_do_not_spoil_a_checkpoint(tmp_path):
    described = checkpoint_metadata(
        SimpleNamespace(
            cfg=load_config("debug", {"test_dataloader.dataset.transforms": "bpe"}),
            task=SimpleNamespace(transfer_from="backbone"),
            initialized_from=None,
            origin=None,
            optim_wrapper=SimpleNamespace(optimizer=None),
            world_size=1,
            train_dataloader=DataLoader([0]),
        )
    )
    assert described["test_transforms"] is None
    check_form({"meta": described}, "x.pth")


@pytest.mark.slow
def test_a_recipe_names_the_start_by_its_run_and_epoch(epoch, tmp_path):
    """Not by a path, which says nothing in another folder, and is another one for the same file."""
    shutil.copytree(epoch, tmp_path / "moved")
    origin = f"epoch 1 of run {result_of(epoch)['run']}"
    train(tmp_path / "run", train_cfg__max_epochs=1, load_from=str(tmp_path / "moved/epoch_1.pth"))
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    meta = train(tmp_path / "elsewhere", resume=True, train_cfg__max_epochs=2)["meta"]
    result = result_of(tmp_path / "elsewhere")
    assert meta["recipe"]["initialized_from"] == result["recipe"]["initialized_from"] == origin
    assert (result["initialized_from"], result["launch"]) == (str(tmp_path / "moved/epoch_1.pth"), 2)


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ({"source": {"type": "ClassFolders"}}, "pets"),
        ({"source": {"type": "ClassFolders", "root": "/data/cats/"}}, "cats"),
        ({"source": {"type": "ClassFolders", "root": "/data/ImageNet"}}, "ImageNet (ClassFolders)"),
        ({"type": "ImageFiles", "root": "/data/photos"}, "photos"),
        ({"source": {"type": "ImageNet"}}, "ImageNet"),
        ({"source": {"type": "Digits"}}, "Digits"),
    ],
)
def test_dataset_name_of_image_folders_is_their_folders(dataset, name):
    assert dataset_name(dataset, "/data/pets") == name


def test_code_commit_is_that_of_the_clone(tmp_path, monkeypatch):
    import crate_mm

    code_commit.cache_clear()
    package = tmp_path / "clone/crate_mm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(crate_mm, "__file__", str(package / "__init__.py"))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert code_commit() is None  # the repository around an installed package is not that of its code
    git[2] = str(tmp_path / "clone")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "begin"], ["tag", "-am", "one", "v1"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    code_commit.cache_clear()
    assert code_commit() == head
    (package / "__init__.py").write_text("changed = 1")
    code_commit.cache_clear()
    assert code_commit() == f"{head}-dirty"
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    code_commit.cache_clear()
    assert code_commit() == f"{head}-dirty"
    code_commit.cache_clear()


@pytest.mark.parametrize("save_best", [None, "auto"])
@pytest.mark.slow
def test_result_of_a_finished_run_outlives_a_resume(epoch, tmp_path, save_best):
    shutil.copytree(epoch, tmp_path, dirs_exist_ok=True)
    run(tmp_path, resume=True, train_cfg__max_epochs=1, default_hooks__checkpoint__save_best=save_best)
    assert (tmp_path / "result.json").read_bytes() == (epoch / "result.json").read_bytes()
