"""Several crops of one image: shapes, draws, encoded images, and what is refused."""

import pytest
import torch
from torch.utils.data import DataLoader

from crate_mm.datasets import ClassificationDataset, Digits, GlobalBatchSampler, ImageNet, Views, collate
from crate_mm.engine import Runner, load_config
from tests.training import assert_identical

LARGE = [dict(type="RandomResizedCrop", size=24, scale=(0.4, 1.0)), dict(type="RandomHorizontalFlip")]
SMALL = [dict(type="RandomResizedCrop", size=12, scale=(0.1, 0.4)), dict(type="ColorJitter", brightness=0.4)]
VIEWS = [dict(num=2, transforms=LARGE), dict(num=3, transforms=SMALL), dict(transforms=LARGE)]
SHAPES = [(3, 24, 24)] * 2 + [(3, 12, 12)] * 3 + [(3, 24, 24)]


def load(data, workers=0, epoch=0, collate_fn=collate):
    sampler = GlobalBatchSampler(data, 12, seed=0)
    sampler.set_epoch(epoch)
    return next(iter(DataLoader(data, 12, sampler=sampler, num_workers=workers, collate_fn=collate_fn)))


def test_a_batch_has_a_tensor_a_view_and_all_else_once(image_tree):
    data = Views(ImageNet(str(image_tree)), VIEWS)
    batch = load(data)
    assert [tuple(view.shape) for view in batch["inputs"]] == [(12, *shape) for shape in SHAPES]
    assert {view.dtype for view in batch["inputs"]} == {torch.uint8}
    assert [len(field) for field in data.spec["inputs"]] == [2] * 6
    plain = ClassificationDataset(ImageNet(str(image_tree)))
    for position, label in zip(batch["sample_idx"].tolist(), batch["labels"].tolist()):
        assert plain.images.targets[position] == label
    assert (data.classes, data.labels()) == (plain.classes, plain.labels())
    assert data.spec.keys() <= data[0].keys()


def test_views_depend_on_seed_and_sample_not_on_workers(image_tree):
    data = Views(ImageNet(str(image_tree)), VIEWS)
    batch = load(data)
    assert_identical(load(data, workers=2), batch)
    assert_identical(load(data, collate_fn=None), batch)  # PyTorch's own
    assert not torch.equal(load(data, epoch=1)["inputs"][0], batch["inputs"][0])
    for one in range(6):
        assert all(not torch.equal(data[3, 9]["inputs"][one], data[3, 9]["inputs"][k]) for k in range(one) if k != 2)
    assert_identical(data[3, 9], data[3, 9])


def test_encoded_images_are_decoded_for_each_view_by_itself(image_tree):
    """And by PIL, once, where one of the views begins otherwise; channels stay side by side in memory."""
    crops = [dict(transforms=[dict(type="DecodeRandomResizedCrop", size=size)]) for size in (24, 12)]
    for views, encoded in ((crops, True), ([*crops, dict(transforms=LARGE)], False)):
        data = Views(ImageNet(str(image_tree)), views)
        assert data.encoded == encoded
        inputs = load(data)["inputs"]
        assert [view.shape[-1] for view in inputs] == [24, 12, 24][: len(views)]
    assert all(v.is_contiguous(memory_format=torch.channels_last) for v in load(Views(data.source, crops))["inputs"])


def test_an_unreadable_image_is_replaced_in_all_views(image_tree):
    source = ImageNet(str(image_tree))
    open(source.path(5), "wb").close()
    data = Views(source, VIEWS)
    sample = data[5, 3]
    assert (sample["sample_idx"], sample["unreadable"]) == (6, 5)
    assert "it is empty" in sample["unreadable_reason"]
    assert_identical(sample["inputs"], data[6, 3]["inputs"])


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([], "there are no views"),
        ([dict(num=0, transforms=[])], r"expected dict\(num=N, transforms=.* got {'num': 0, 'transforms': \[\]}"),
        ([dict(num=2)], r"expected dict\(num=N"),
        ([dict(number=2, transforms=[])], r"expected dict\(num=N"),
        ([LARGE], r"expected dict\(num=N"),
    ],
)
def test_what_is_no_list_of_views_is_refused_in_a_sentence(views, message):
    with pytest.raises(ValueError, match=f"Views: {message}"):
        Views(Digits(), views)


def test_a_classifier_refuses_views(tmp_path):
    cfg = load_config("debug")
    views = [dict(num=2, transforms=[])]
    cfg.train_dataloader.dataset = dict(type="Views", source=dict(type="Digits"), views=views)
    cfg.work_dir = str(tmp_path)
    with pytest.raises(ValueError, match=r"'Views' gives uint8 of shape \(C, H, W\); uint8 of .* as inputs: expected"):
        Runner.from_cfg(cfg).build_for_training()
