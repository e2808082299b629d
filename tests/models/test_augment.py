"""Augmentations of a batch against their formulas, and in the training loss against timm's of mixed smoothed labels."""

import pytest
import torch

from crate_mm.checkpoints import as_checkpoint
from crate_mm.checkpoints.described import build_from_checkpoint
from crate_mm.models import ImageClassifier
from crate_mm.models.tasks.augment import BatchAugments, BatchRandomErasing, CutMix, MixUp
from crate_mm.registry import TRANSFORMS
from tests.training import assert_identical, train

MIXING = [dict(type="MixUp", alpha=0.8), dict(type="CutMix", alpha=1.0)]
ERASING = dict(type="BatchRandomErasing", p=0.25)


def batch(size=6, classes=5):
    torch.manual_seed(0)
    return torch.randn(size, 3, 8, 12, dtype=torch.float64), torch.arange(size) % classes


def classifier(**options):
    torch.manual_seed(0)
    arch = dict(embed_dim=24, depth=2, num_heads=3)
    return ImageClassifier(
        backbone=dict(type="CRATE", arch=arch, img_size=(8, 12), patch_size=4),
        head=dict(type="LinearHead", num_classes=5),
        **options,
    ).double()


def beta(alpha, seed):
    """The weight that torchvision draws from Beta(alpha, alpha) after a seed and one draw."""
    torch.manual_seed(seed)
    torch.rand(())
    return float(torch.distributions.Beta(torch.tensor([alpha]), torch.tensor([alpha])).sample(()))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mixup_is_its_formula(seed):
    images, labels = batch()
    lam = beta(0.8, seed)
    torch.manual_seed(seed)
    mixed, soft = BatchAugments([dict(type="MixUp", alpha=0.8)], 5)(images, labels)
    onehot = torch.eye(5, dtype=torch.float64)[labels]
    before = [5, 0, 1, 2, 3, 4]
    torch.testing.assert_close(mixed, lam * images + (1 - lam) * images[before], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(soft, lam * onehot + (1 - lam) * onehot[before], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cutmix_is_its_formula(seed):
    images, labels = batch()
    lam = beta(1.0, seed)
    x, y = (int(torch.randint(side, (1,))) for side in (12, 8))  # the centre, drawn next
    half = [int(0.5 * (1 - lam) ** 0.5 * side) for side in (12, 8)]
    left, right = max(x - half[0], 0), min(x + half[0], 12)
    top, bottom = max(y - half[1], 0), min(y + half[1], 8)
    torch.manual_seed(seed)
    mixed, soft = BatchAugments([dict(type="CutMix", alpha=1.0)], 5)(images, labels)
    expected, before = images.clone(), images[[5, 0, 1, 2, 3, 4]]
    expected[:, :, top:bottom, left:right] = before[:, :, top:bottom, left:right]
    assert torch.equal(mixed, expected)
    share = (bottom - top) * (right - left) / 96
    onehot = torch.eye(5, dtype=torch.float64)[labels]
    torch.testing.assert_close(soft, (1 - share) * onehot + share * onehot[[5, 0, 1, 2, 3, 4]], rtol=1e-12, atol=0)


def test_the_loss_is_that_of_mixed_smoothed_labels():
    """timm smooths the one-hot labels, mixes them, and sums -target log p."""
    model, (images, labels) = classifier(label_smoothing=0.1, batch_augments=MIXING[:1]).train(), batch()
    lam = beta(0.8, 7)
    smoothed = torch.full((6, 5), 0.1 / 5, dtype=torch.float64)
    smoothed[range(6), labels] += 0.9
    target = lam * smoothed + (1 - lam) * smoothed.roll(1, 0)
    logits = model.tensor(lam * images + (1 - lam) * images.roll(1, 0))
    expected = -(target * logits.log_softmax(-1)).sum(-1).mean()
    torch.manual_seed(7)
    torch.testing.assert_close(model.loss(images, labels)["loss"], expected, rtol=1e-10, atol=0)
    evaluated, plain = model.eval().loss(images, labels)["loss"], classifier(label_smoothing=0.1).loss(images, labels)
    assert torch.equal(evaluated, plain["loss"]), "nothing is mixed outside training"


def test_one_is_drawn_for_a_batch_by_its_probability():
    images, labels = batch()

    def kinds(augments, count=300):
        found = {"none": 0, "mixup": 0, "cutmix": 0}
        for _ in range(count):
            mixed, _soft = augments(images, labels)
            copied = (mixed == images) | (mixed == images.roll(1, 0))
            found["none" if torch.equal(mixed, images) else "cutmix" if copied.all() else "mixup"] += 1
        return found

    torch.manual_seed(0)
    even = kinds(BatchAugments([MIXING[0], dict(MIXING[1], alpha=1e5)], 5))  # a rectangle that is never empty
    assert even["none"] == 0
    assert 110 < even["mixup"] < 190
    some = kinds(BatchAugments([dict(MIXING[0], prob=0.2), dict(MIXING[1], alpha=1e5, prob=0.3)], 5))
    assert 30 < some["mixup"] < 90
    assert 60 < some["cutmix"] < 120
    assert BatchAugments([dict(MIXING[0], prob=0.8), *MIXING], 5).probabilities == pytest.approx([0.8, 0.1, 0.1])


def test_erasing_is_one_rectangle_of_noise_an_image():
    torch.manual_seed(0)
    images, labels = torch.full((200, 3, 32, 32), 7.0), torch.zeros(200, dtype=torch.long)
    erased, same = BatchRandomErasing(p=0.25)(images, labels)
    assert same is labels
    assert (images == 7).all(), "the batch itself is left alone"
    changed = (erased != 7).any(1)
    touched = changed.flatten(1).any(1)
    assert 30 < touched.sum() < 70
    corners = set()
    for mask, image in zip(changed[touched], erased[touched]):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 0.01 < mask.float().mean() < 0.36
        assert image[:, mask].unique().numel() > 2.9 * mask.sum(), "each pixel and channel its own number"
        corners.add((int(rows[0]), int(columns[0])))
    noise = erased[changed[:, None].expand(-1, 3, -1, -1)]
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    assert len(corners) > 20
    gray = BatchRandomErasing(p=1, value=(1, 2, 3))(images, labels)[0]
    assert [set(channel.unique().tolist()) for channel in gray.unbind(1)] == [{1, 7}, {2, 7}, {3, 7}]


def test_erasing_comes_first():
    images, labels = batch()
    both = BatchAugments([dict(ERASING, p=1.0, value=0), MIXING[0]], 5)
    torch.manual_seed(4)
    mixed, _ = both(images, labels)
    torch.manual_seed(4)
    erased, _ = both.always[0](images, labels)
    torch.rand(())
    assert torch.equal(mixed, MixUp(0.8)(erased, torch.eye(5)[labels])[0])
    assert torch.equal(BatchAugments([dict(ERASING, p=0.0)], 5)(images, labels)[1], labels)


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ([dict(type="MixUp", alpha=0)], "alpha must be a number above 0, got 0: leave the entry out"),
        ([dict(type="CutMix", alpha="1")], "alpha must be a number above 0, got '1'"),
        ([dict(type="Mixup")], "unknown model 'Mixup': did you mean MixUp"),
        ([dict(MIXING[0], prob=0.7), dict(MIXING[1], prob=0.7)], "the sum of prob must be at most 1"),
        ([dict(MIXING[0], prob=1.2)], "prob must be a probability from 0 to 1, got 1.2"),
        ([dict(ERASING, prob=0.5)], "BatchRandomErasing is always applied, it has no prob"),
        ([MIXING[0], ERASING], "BatchRandomErasing must come before MixUp"),
        (dict(type="MixUp"), "batch_augments must be a list of dict"),
        (["MixUp"], "batch_augments must be a list of dict"),
    ],
)
def test_what_makes_no_sense_is_refused(configs, message):
    with pytest.raises(ValueError, match=message):
        classifier(batch_augments=configs)


def test_a_batch_of_one_is_refused():
    images, labels = batch(1)
    with pytest.raises(ValueError, match="mixes each image with another of its micro-batch, which has only one image"):
        classifier(batch_augments=MIXING).train().loss(images, labels)


def test_noise_in_bytes_is_refused():
    with pytest.raises(ValueError, match="images are uint8 here, .*BatchRandomErasing"):
        TRANSFORMS.build(dict(type="RandomErasing", value="random"))
    image = torch.full((3, 32, 32), 9, dtype=torch.uint8)
    assert set(TRANSFORMS.build(dict(type="RandomErasing", p=1.0, value=200))(image).unique().tolist()) == {9, 200}


def test_a_checkpoint_of_such_a_model_describes_it():
    described = dict(
        type="ImageClassifier",
        backbone=dict(type="CRATE", arch=dict(embed_dim=24, depth=2, num_heads=3), img_size=8, patch_size=4),
        head=dict(type="LinearHead", num_classes=5),
        batch_augments=[ERASING, *MIXING],
    )
    weights = ImageClassifier(**{k: v for k, v in described.items() if k != "type"}).state_dict()
    assert not any("augment" in name for name in weights)
    model = build_from_checkpoint(as_checkpoint({"meta": {"model": described}, "state_dict": weights}))
    assert [type(a) for a in model.batch_augments.mixing] == [MixUp, CutMix]


@pytest.mark.slow
def test_a_resumed_run_draws_the_same(tmp_path):
    options = dict(
        model__batch_augments=[ERASING, *MIXING], model__backbone__drop_path=0.5, max_batch_per_device=64,
        train_dataloader__sampler__repeats=3, optim_wrapper__paramwise_cfg=dict(flat_decay_mult=0.0),
        auto_scale_lr=dict(base_batch_size=64, enable=True), ema_momentum=0.1, default_hooks__checkpoint__every_iters=3,
    )  # fmt: skip
    whole = train(tmp_path / "whole", train_cfg__max_epochs=2, **options)
    train(tmp_path / "part", train_cfg__max_epochs=1, param_scheduler__end=2, **options)
    resumed = train(tmp_path / "part", resume=True, train_cfg__max_epochs=2, **options)
    for key in ("state_dict", "optimizer", "ema_state_dict"):
        assert_identical(whole[key], resumed[key], key)
