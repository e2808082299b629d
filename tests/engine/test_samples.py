"""What is shown of the training data is what a run is trained on."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.utils import apply_to

from crate_mm.engine import Runner
from crate_mm.engine.loading.chunks import join
from crate_mm.extras.sample_preview import SamplePreview
from tests.training import AUGMENT, debug_config

MIX = [
    dict(type="BatchRandomErasing", p=0.5),
    dict(type="MixUp", alpha=0.8, prob=0.5),
    dict(type="CutMix", alpha=1.0),
]


class Watch(Hook):
    """Keeps what each step gets, and what the model makes of its batch."""

    def __init__(self) -> None:
        self.batches, self.augmented = [], []

    def before_train(self, runner) -> None:
        if runner.task.batch_augments is not None:
            runner.task.batch_augments.register_forward_hook(lambda m, i, out: self.augmented.append(out))

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.batches.append(apply_to(data_batch, torch.is_tensor, torch.clone))


def config(**overrides):
    cfg = debug_config(train_cfg__max_epochs=3, **overrides)
    cfg.train_dataloader.dataset.transforms = AUGMENT
    return cfg


def watched(cfg, work_dir) -> tuple[Watch, Runner]:
    cfg = cfg.copy()
    cfg.work_dir = str(work_dir)
    runner = Runner.from_cfg(cfg)
    watch = Watch()
    runner.register_hook(watch)
    runner.train()
    return watch, runner


@pytest.mark.slow
def test_an_epochs_first_samples_are_those_of_a_run(tmp_path):
    cfg = config(randomness__seed=3)
    watch, _ = watched(cfg, tmp_path)
    for epoch in (1, 3):
        found = list(SamplePreview(cfg).epoch_samples(40, epoch))
        steps = watch.batches[(epoch - 1) * 10 :][:2]
        run = join(steps)
        assert [seen.position for seen in found] == run["sample_idx"][:40].tolist()
        assert [seen.labels for seen in found] == [[(label, 1.0)] for label in run["labels"][:40].tolist()]
        assert torch.equal(torch.stack([seen.pixels for seen in found]), run["inputs"][:40])
        assert {seen.epoch for seen in found} == {epoch}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.slow
def test_batches_are_augmented_as_in_a_run(tmp_path, parts):
    cfg = config(model__batch_augments=MIX, max_batch_per_device=32 // parts, model__backbone__drop_path=0.3)
    watch, runner = watched(cfg, tmp_path)
    kinds = set()
    for epoch in (1, 2):
        found = list(SamplePreview(cfg).epoch_samples(2 * 32 // parts + 3, epoch))
        size = 32 // parts
        assert len(found) == 2 * size + 3
        for number, seen in enumerate(found):
            step, row = divmod(number, size)
            images, labels = watch.augmented[((epoch - 1) * 10 + step) * parts]
            expected = runner.task.data_preprocessor.denormalize(images[row : row + 1])[0]
            assert torch.equal(seen.pixels, expected), (epoch, number)
            shares = torch.zeros(10)
            for label, share in seen.labels:
                shares[label] = share
            torch.testing.assert_close(shares, labels[row])
            kinds.add(len(seen.labels))
    assert kinds == {1, 2}


@pytest.mark.slow
def test_one_sample_in_several_epochs(tmp_path):
    cfg = config(global_batch_size=60)  # 20 of the 320 are left out of each epoch
    watch, _ = watched(cfg, tmp_path)
    run = [(step // 5 + 1, batch) for step, batch in enumerate(watch.batches)]
    samples = SamplePreview(cfg)
    everywhere = set.intersection(
        *({int(p) for e, b in run if e == epoch for p in b["sample_idx"]} for epoch in (1, 2, 3))
    )
    left_out = set(range(320)) - {int(p) for e, b in run if e == 1 for p in b["sample_idx"]}
    for position, epochs in ((min(everywhere), [1, 2, 3]), (min(left_out), None)):
        found = list(samples.sample_by_epoch(position, 3))
        assert {seen.position for seen in found} == {position}
        if epochs:
            assert [seen.epoch for seen in found] == epochs
        else:
            assert found[0].epoch > 1
        for seen in found:
            for epoch, batch in run:
                if epoch == seen.epoch and position in batch["sample_idx"].tolist():
                    row = batch["sample_idx"].tolist().index(position)
                    assert torch.equal(seen.pixels, batch["inputs"][row])
    assert len({seen.pixels.numpy().tobytes() for seen in samples.sample_by_epoch(min(everywhere), 3)}) == 3
    with pytest.raises(ValueError, match="sample 320 does not exist: the data has 320 samples, from 0"):
        list(samples.sample_by_epoch(320, 1))


def test_repeats_are_shown_as_often(tmp_path):
    cfg = config(train_dataloader__sampler={"repeats": 2})
    found = list(SamplePreview(cfg).sample_by_epoch(5, 2)) or list(SamplePreview(cfg).sample_by_epoch(6, 2))
    assert found[0].epoch == found[1].epoch
    assert not torch.equal(found[0].pixels, found[1].pixels)


def test_other_splits_are_spread_over_their_data():
    samples = SamplePreview(debug_config(), "val")
    found = list(samples.epoch_samples(10))
    assert [seen.position for seen in found] == list(range(0, 100, 10))
    assert torch.equal(found[3].pixels, samples.dataset[30]["inputs"])
    assert len(list(samples.epoch_samples(1000))) == 100
    with pytest.raises(ValueError, match="the val data is the same in every epoch"):
        list(samples.sample_by_epoch(0, 2))


def test_a_run_without_a_seed_cannot_be_shown():
    with pytest.raises(ValueError, match=r"the config has no randomness.seed"):
        SamplePreview(debug_config(randomness__seed=None))
