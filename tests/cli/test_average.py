"""``average``, by running it on checkpoints of training."""

import re

import pytest
import torch

from crate_mm.checkpoints import open_checkpoint
from crate_mm.engine import Runner, load_config
from crate_mm.extras.average import average, validating, with_own_statistics
from crate_mm.extras.sample_preview import SamplePreview
from crate_mm.registry import MODELS
from crate_mm.torch_private import BatchNorm


@pytest.fixture(scope="module")
def epochs(tmp_path_factory):
    """Three epochs of a run with averaged weights, and a file of the same model that has learnt nothing."""
    folder = tmp_path_factory.mktemp("average")
    cfg = load_config("debug", {"train_cfg.max_epochs": 3, "optim_wrapper.optimizer.lr": 3e-3})
    cfg.work_dir = str(folder)
    Runner.from_cfg(cfg).train()
    paths = [folder / f"epoch_{epoch}.pth" for epoch in (1, 2, 3)]
    spoiled = torch.load(paths[0], weights_only=True)
    torch.manual_seed(0)
    spoiled["state_dict"] = {k: 5 * torch.randn(v.shape) for k, v in spoiled["state_dict"].items()}
    torch.save({key: spoiled[key] for key in ("meta", "state_dict")}, folder / "spoiled.pth")
    return [*paths, folder / "spoiled.pth"]


@pytest.mark.slow
def test_the_uniform_average(run_main, epochs, tmp_path):
    out = tmp_path / "mean.pth"
    done = run_main("average", *epochs[:3], "--out", out)
    run = open_checkpoint(epochs[0]).run
    told = ", ".join(f"epoch_{n}.pth (epoch {n}, run {run})" for n in (1, 2, 3))
    assert done.last_line == f"wrote {out}: the average of {told}"
    mean, _ = average(epochs[:3])
    assert all(torch.equal(value, mean.weights[name]) for name, value in open_checkpoint(out).weights.items())
    run_main("test", "debug", out, "--work-dir", tmp_path / "test")


@pytest.mark.slow
def test_the_greedy_average_is_chosen_by_the_validation(run_main, epochs, tmp_path):
    out = tmp_path / "soup.pth"
    done = run_main("average", *reversed(epochs), "--greedy", "debug", "--out", out)
    pattern = r"^(?:.*/)?(\w+)\.pth: eval/top1 ([\d.]+) alone, ([\d.]+) in the average: (accepted|rejected)$"
    steps = [(m[1], float(m[2]), float(m[3]), m[4]) for m in re.finditer(pattern, done.output, re.M)]
    assert len(steps) == 4
    assert [step[1] for step in steps] == sorted((step[1] for step in steps), reverse=True)
    assert steps[-1][0] == "spoiled"
    assert steps[-1][3] == "rejected"
    with validating(load_config("debug")) as score:
        for name, alone, *_ in steps:
            assert score(open_checkpoint(epochs[0].parent / f"{name}.pth")) == pytest.approx(alone, abs=1e-4)
        best, kept = -1.0, []
        for name, _, together, said in steps:
            candidate = [*kept, epochs[0].parent / f"{name}.pth"]
            assert score(average(candidate)[0]) == pytest.approx(together, abs=1e-4)
            assert (said == "accepted") == (together >= best)
            if together >= best:
                best, kept = together, candidate
        assert score(open_checkpoint(out)) == pytest.approx(best, abs=1e-4)
    assert len(open_checkpoint(out).meta["averaged_from"]) == len(kept)


def tost_config():
    cfg = load_config("debug", {"global_batch_size": 64})
    arch = dict(embed_dim=24, depth=2, num_heads=3)
    cfg.model.backbone = dict(type="ToST", arch=arch, img_size=16, patch_size=8, in_channels=1)
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].dataset.transforms = [dict(type="Resize", size=16)]
    return cfg


@pytest.mark.slow
def test_statistics_are_those_of_the_averaged_weights(tmp_path):
    cfg = tost_config()
    cfg.work_dir, cfg.train_cfg.max_epochs = str(tmp_path), 2
    Runner.from_cfg(cfg).train()
    mean, _ = average([tmp_path / "epoch_1.pth", tmp_path / "epoch_2.pth"])
    found = with_own_statistics(mean, cfg, images=200)
    changed = {name for name, value in found.weights.items() if not torch.equal(value, mean.weights[name])}
    assert changed
    assert {name.rpartition(".")[2] for name in changed} <= {"running_mean", "running_var", "num_batches_tracked"}

    task = MODELS.build(cfg.model)
    task.load_state_dict(mean.weights)
    task.train()
    seen = {}
    for name, module in task.named_modules():
        if isinstance(module, BatchNorm):
            module.register_forward_pre_hook(lambda m, args, name=name: seen.setdefault(name, []).append(args[0]))
    samples = SamplePreview(cfg)
    indices = list(samples.sampler)[:192]
    with torch.no_grad():
        for start in range(0, 192, 64):
            batch = torch.stack([samples.dataset[index]["inputs"] for index in indices[start : start + 64]])
            task(task.data_preprocessor({"inputs": batch})["inputs"])
    name, inputs = next(iter(seen.items()))
    assert len(inputs) == 3
    dims = [d for d in range(inputs[0].ndim) if d != 1]
    expected = sum(x.mean(dims) for x in inputs) / 3
    torch.testing.assert_close(found.weights[f"{name}.running_mean"], expected, rtol=1e-4, atol=1e-5)
