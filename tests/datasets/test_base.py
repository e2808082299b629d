"""The contracts of a dataset, a source and a sampler, and what keeps them in parts that do not know them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import FakeData

from crate_mm.config import load_config
from crate_mm.datasets import ClassificationDataset, Digits, GlobalBatchSampler, Windows
from crate_mm.datasets.base import Source, dataset_of, draws_of, require_images, source_of
from crate_mm.engine.checkpointing.results import describe_recipe
from crate_mm.evaluation import extract_features
from crate_mm.extras.dataset_check import check_sources
from crate_mm.registry import DATASETS

BUILT_IN = ["CIFAR10", "CIFAR100", "ClassFolders", "Digits", "FashionMNIST", "Flowers102", "ImageFiles", "ImageFolder"]
BUILT_IN += ["ImageNet", "OxfordIIITPet", "PackedImages"]


class Plain:
    """A user's source with what is needed and no more."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return Image.new("L", (8, 8), index), index


class Samples(Dataset):
    """A user's dataset of samples, which does not know the contract."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"inputs": torch.zeros(3, 8, 8), "labels": index}


def with_(kind, **attributes):
    return type(kind.__name__, (kind,), attributes)()


@pytest.mark.parametrize("name", BUILT_IN)
def test_our_sources_know_the_contract(name):
    assert issubclass(DATASETS.get(name), Source)


def test_a_source_keeps_the_contract():
    source = Digits("test")
    assert source_of(source) is source
    assert np.array_equal(source.targets, [label for _, label in source])
    data = ClassificationDataset(source)
    assert dataset_of(data) is data
    sample = data[4, 1]
    for name, field in data.spec.items():
        value = torch.as_tensor(sample[name])
        assert (value.dtype, value.ndim) == (field.dtype, len(field.shape))
    assert np.array_equal(data.labels(), source.targets)
    assert data.metainfo == {"classes": list("0123456789")}


def test_a_plain_source_is_adapted():
    source = source_of(Plain())
    assert (len(source), source.classes, source.targets, source.encoded) == (3, None, None, False)
    assert source.path(2) == "sample 2 of Plain"
    with pytest.raises(NotImplementedError, match="Plain has no encoded images"):
        source.read(0)


def test_a_source_with_more_is_adapted():
    source = source_of(
        with_(Plain, classes=("a", "b"), _labels=[0, 1, 1], path=lambda s, i: f"{i}.png", read=lambda s, i: (b"x", i))
    )
    assert (source.classes, source.targets, source.path(1)) == (["a", "b"], [0, 1, 1], "1.png")
    assert (source.encoded, source.read(2)) == (True, (b"x", 2))
    assert source_of(FakeData(2, num_classes=3)).classes == ["0", "1", "2"]
    assert source_of(with_(Plain, labels=[0, 1])).targets is None  # not one for each image
    assert source_of(with_(Plain, labels=True, classes=5)).classes is None


def test_a_dataset_of_another_kind_is_adapted():
    data = dataset_of(Samples())
    assert (data.classes, data.labels(), data.metainfo, data.describe(1)) == (None, None, {}, "sample 1")
    assert data.max_unreadable == float("inf")
    assert data.spec == {"inputs": (torch.float32, (3, 8, 8))}
    data = dataset_of(with_(Samples, metainfo={"classes": ["a"], "task": "x"}, path=lambda s, i: f"{i}.png"))
    assert (data.classes, data.metainfo["task"], data.describe(1)) == (["a"], "x", "1.png")
    assert dataset_of(Plain()).spec is None


def test_images_are_required_in_a_sentence():
    require_images(ClassificationDataset(Plain()), "train")
    require_images(Samples(), "train")
    message = r"val_.* of type 'Plain' has no source: .*source=dict\(type='Plain', ...\), transform.* end"
    with pytest.raises(ValueError, match=message):
        require_images(Plain(), "val", " end")
    with pytest.raises(ValueError, match=r"of type 'Windows' gives int64 of shape \(4\) as inputs: expected uint8 of"):
        require_images(Windows(np.arange(9), 4), "train")


def test_the_versions_of_draws_are_those_of_samplers_that_have_them():
    assert draws_of(GlobalBatchSampler(range(8), 2, seed=0)) == 2
    assert draws_of(DefaultSampler(range(8), seed=0)) is None
    assert draws_of(SimpleNamespace(draws=1)) is None


def test_transforms_of_a_dataset_are_whole(image_tree):
    """Also where the first one takes the encoded image: masks pass them as images."""
    transforms = [dict(type="DecodeResize", size=16), dict(type="CenterCrop", size=12)]
    data = ClassificationDataset(dict(type="ImageNet", root=str(image_tree)), transforms)
    image, _ = data.source[0]
    assert data.encoded
    assert data.transforms(image).shape == data[0]["inputs"].shape == (3, 12, 12)
    assert (data.transforms(image).int() - data[0]["inputs"].int()).abs().max() <= 1


def test_doctor_and_neighbours_say_what_they_cannot_use():
    (_, note) = check_sources({"train": Samples()})
    assert note == ("note", "train", "Samples returns dict, not pairs (image, label): its samples are not checked")
    batch = {"inputs": torch.zeros(2, 3), "labels": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=r"expected labels \(B,\) and .*, got labels \(2, 3\)$"):
        extract_features(torch.nn.Linear(3, 3), [batch])


def test_settings_of_a_dataset_are_part_of_the_recipe():
    cfg = load_config("debug")
    before = describe_recipe(cfg)
    cfg.train_dataloader.dataset.max_unreadable = 3
    assert describe_recipe(cfg) == before
    views = [{"num": 2, "transforms": []}]
    cfg.train_dataloader.dataset = dict(type="Views", source=dict(type="Digits"), views=views)
    assert describe_recipe(cfg)["train_data"] == {"views": views}
