"""The masked autoencoder as a task: training, evaluation, transfer, and looking into it."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

from crate_mm import init_model
from crate_mm.analysis.gather import defined_measures, measure_layers
from crate_mm.analysis.measures import subspace_coding_rate
from crate_mm.analysis.taps import capture
from crate_mm.checkpoints import as_checkpoint
from crate_mm.checkpoints.fit import transfer_backbone
from crate_mm.config.load import as_classifier
from crate_mm.datasets import draws
from crate_mm.engine import Runner, load_config, read_checkpoint
from crate_mm.engine.parallel.blocks import enable_activation_checkpointing, layer_groups
from crate_mm.evaluation import ReconstructionLoss, extract_features
from crate_mm.inference.standalone import build_loader, load_config_and_checkpoint
from crate_mm.models import ImageClassifier
from crate_mm.models.layers import resize_table
from crate_mm.models.tasks.masked import random_bits
from crate_mm.registry import DATASETS, MODELS
from tests.training import assert_identical, train_on_processes

MICRO = dict(embed_dim=24, depth=2, num_heads=3)
BACKBONE = dict(type="CRATEMAE", arch=MICRO, img_size=8, patch_size=2, in_channels=1)
MODEL = dict(
    type="MaskedAutoencoder", backbone=BACKBONE, norm_pix_loss=True, preprocessor=dict(mean=(0.3,), std=(0.4,))
)


def build(**options):
    torch.manual_seed(0)
    return MODELS.build(copy.deepcopy({**MODEL, **options}))


def config(work_dir, **overrides):
    """Two epochs of three steps on the digits, with the optimizer of the pretraining."""
    settings = {"global_batch_size": 449, "train_cfg.max_epochs": 2, **overrides}
    cfg = load_config("debug", settings)
    cfg.model = copy.deepcopy(MODEL)
    cfg.optim_wrapper = load_config("crate_mae_base_in1k").optim_wrapper
    cfg.val_evaluator = cfg.test_evaluator = dict(type="ReconstructionLoss")
    cfg.work_dir = str(work_dir)
    return cfg


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The work directory of a training by the Runner."""
    work_dir = tmp_path_factory.mktemp("masked")
    Runner.from_cfg(config(work_dir)).train()
    return work_dir


def digits(count, size=8):
    source = DATASETS.build(dict(type="Digits", split="test"))
    images = torch.stack([torch.tensor(np.asarray(source[i][0]))[None] for i in range(count)])
    return F.interpolate(images.float(), size).to(torch.uint8)


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_trains_everything_and_is_judged_by_its_loss(run):
    result = json.loads((run / "result.json").read_text())
    assert result["headline"] == {"metric": "loss", "rule": "less"}
    assert result["model"] == "cratemae_24x2x3"
    assert result["last"]["loss"] < 1.5
    best = result["best"]["epoch"]
    assert (run / f"best_eval_loss_epoch_{best}.pth").is_file()
    weights, start = read_checkpoint(run / "epoch_2.pth")["state_dict"], build().state_dict()
    changed = {name for name, value in weights.items() if not torch.equal(value, start[name])}
    assert set(weights) - changed == {"backbone.embedding.pos_table"}


@pytest.mark.slow
def test_a_resumed_run_repeats_the_uninterrupted_one(run, tmp_path):
    """The masks too: they are drawn in the model, by the samples' seeds."""
    cfg = config(tmp_path)
    cfg.resume, cfg.load_from = True, str(run / "epoch_1.pth")
    Runner.from_cfg(cfg).train()
    one, other = (read_checkpoint(folder / "epoch_2.pth") for folder in (run, tmp_path))
    assert_identical(one["state_dict"], other["state_dict"])
    assert_identical(one["optimizer"], other["optimizer"])


def take_steps(work_dir, launcher, **settings):
    torch.set_default_dtype(torch.float64)
    cfg = config(work_dir, **{"global_batch_size": 100, "train_cfg.max_epochs": 1, **settings})
    cfg.optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.05))  # of Lion rounding flips signs
    cfg.launcher = launcher
    Runner.from_cfg(cfg).train()


@pytest.mark.slow
def test_processes_and_micro_batches_mask_the_same_patches(tmp_path):
    weights = {
        name: train_on_processes(world_size, tmp_path / name, take_steps, **settings)["state_dict"]
        for name, world_size, settings in (
            ("one", 1, {}), ("accumulated", 1, {"max_batch_per_device": 30}), ("three", 3, {})
        )
    }  # fmt: skip
    for name in ("accumulated", "three"):
        for key, value in weights["one"].items():
            torch.testing.assert_close(weights[name][key], value, rtol=1e-10, atol=1e-12, msg=f"{name} {key}")


def test_a_samples_seed_gives_its_mask():
    seeds = torch.tensor([0, 5, 2**62 - 1])
    bits = random_bits(seeds, 16)
    for row, seed in zip(bits, seeds.tolist()):
        assert row.tolist() == draws.random_bits(np.uint64(seed), np.arange(16)).astype(np.int64).tolist()
    model, images = build().eval(), torch.randn(3, 1, 8, 8)
    loss = model(images, sample_seed=seeds, mode="loss")["loss"]
    each = [model(images[i : i + 1], sample_seed=seeds[i : i + 1], mode="loss")["loss"] for i in range(3)]
    torch.testing.assert_close(torch.stack(each).mean(), loss)
    torch.testing.assert_close(model(images, noise=bits, mode="loss")["loss"], loss)


def test_without_seeds_of_samples_the_masks_follow_the_random_state():
    model, images = build().eval(), torch.randn(4, 1, 8, 8)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(images, mode="loss")["loss"].item())
    assert losses[0] == losses[1] != losses[2]


def test_decay_is_of_what_has_more_than_one_dimension(tmp_path):
    runner = Runner.from_cfg(config(tmp_path))
    runner.build_for_training()
    groups = runner.optim_wrapper.optimizer.param_groups
    decayed = [p for group in groups if group["weight_decay"] for p in group["params"]]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}
    assert {id(p) for p in decayed} == {id(p) for p in runner.model.parameters() if p.ndim > 1}


def test_the_loss_is_of_the_masked_patches_alone():
    model, images = build(norm_pix_loss=False).double().eval(), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    noise = torch.rand(3, 16)
    mask, pred = model.mask_of(noise), model(images, noise=noise)
    total = 0
    for i in range(3):
        for n in mask[i].nonzero().flatten().tolist():
            row, column = 2 * (n // 4), 2 * (n % 4)
            patch = images[i, :, row : row + 2, column : column + 2].permute(1, 2, 0).flatten()
            total = total + (pred[i, n] - patch).square().mean() / 12
    torch.testing.assert_close(model(images, noise=noise, mode="loss")["loss"], total / 3)


def test_a_hidden_patch_has_no_effect():
    model, images, noise = build().double().eval(), torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.rand(2, 16)
    patches = model.patchify(images)
    patches[model.mask_of(noise)] += 5
    torch.testing.assert_close(model(model.unpatchify(patches), noise=noise), model(images, noise=noise))


def test_recomputed_blocks_are_the_decoders_too():
    model, images, noise = build().double(), torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.rand(2, 16)
    assert layer_groups(model) == [[*model.backbone.blocks], [*model.decoder.blocks]]
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(images, noise=noise, mode="loss")["loss"].backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        enable_activation_checkpointing(model)
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(recomputed, plain, rtol=1e-12, atol=1e-12)


def test_low_precision_keeps_the_loss_in_full():
    model, images, noise = build().eval(), torch.randn(2, 1, 8, 8), torch.rand(2, 16)
    full = model(images, noise=noise, mode="loss")["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images, noise=noise, mode="loss")["loss"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(full.item(), rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mask_ratio=0.0), "mask_ratio 0.0 of 16 patches must leave at least one and mask at least one"),
        (dict(mask_ratio=0.97), "mask_ratio 0.97 of 16 patches"),
        (dict(mask_ratio="most"), "mask_ratio most of 16 patches"),
        (
            dict(backbone={**BACKBONE, "type": "ToST", "img_size": 16, "patch_size": 8}),
            "ToST cannot mask patches: its forward has no mask and mask_token",
        ),
        (dict(preprocessor={}), "takes images of 1 channels, the preprocessor's mean and std are of 3"),
        (dict(decoder=dict(layers=2)), "decoder needs depth and num_heads, got depth, num_heads, layers"),
        (dict(backbone={**BACKBONE, "img_size": 9}), "img_size 9 x 9 is not a whole number of patches of 2 x 2"),
    ],
)
def test_what_does_not_build(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (dict(inputs=torch.zeros(2, 1, 10, 10)), r"must have the backbone's img_size \(8, 8\), got \(10, 10\)"),
        (dict(inputs=torch.zeros(2, 1, 8, 8), noise=torch.rand(2, 9)), r"noise must have shape \(2, 16\)"),
        (dict(inputs=torch.zeros(2, 3, 8, 8)), r"expected images of shape \(B, 1, H, W\) in whole patches of 2 x 2"),
    ],
)
def test_batches_that_do_not_fit(batch, message):
    with pytest.raises(ValueError, match=message):
        build()(**batch, mode="loss")


def test_data_without_a_source_is_refused():
    with pytest.raises(ValueError, match="dataset of type 'Digits' has no source"):
        build().check_data(DATASETS.build(dict(type="Digits")), "train")


def test_the_classes_of_the_data_do_not_matter(run, tmp_path):
    """A classifier is refused a test on data of other classes; here labels have no effect."""
    cfg = config(tmp_path)
    contents = read_checkpoint(run / "epoch_2.pth")
    contents["meta"]["dataset_meta"] = {"classes": ["cat", "dog"]}
    torch.save(contents, tmp_path / "other.pth")
    cfg.load_from = str(tmp_path / "other.pth")
    runner = Runner.from_cfg(cfg)
    assert runner.test()["eval/loss"] < 1.5


# Evaluation -----------------------------------------------------------------------------------------------------------


def evaluated(model, batch_size, count=50):
    dataset = build_loader(load_config("debug")).dataset
    metric = ReconstructionLoss()
    for start in range(0, count, batch_size):
        batch = default_collate([dataset[i] for i in range(start, min(start + batch_size, count))])
        data = model.data_preprocessor(batch)
        metric.process(batch, model(**{**data, "inputs": data["inputs"].double()}, mode="predict"))
    return metric.evaluate(count)["eval/loss"]


@torch.no_grad()
def test_an_evaluation_is_repeatable_in_batches_of_any_size():
    model = build().double().eval()
    whole = evaluated(model, 50)
    torch.manual_seed(5)  # the random state has no effect
    assert evaluated(model, 50) == whole
    assert evaluated(model, 7) == pytest.approx(whole, rel=1e-12)


def test_an_image_keeps_its_mask_wherever_it_stands():
    model = build()
    one, other = model.noise_of(torch.tensor([3, 8])), model.noise_of(torch.tensor([8, 3]))
    assert torch.equal(one, other.flip(0))
    assert not torch.equal(one[0], one[1])
    with pytest.raises(ValueError, match="the batch has no sample_idx, from which an evaluation draws the masks"):
        model(torch.zeros(1, 1, 8, 8), mode="predict")


def test_the_metric_counts_a_sample_once(monkeypatch):
    def rows(metric, ids):
        for part in torch.tensor(ids).split(3):
            metric.process({}, [{"loss": part.double() ** 2, "sample_idx": part}])
        return metric

    expected = sum(i**2 for i in range(8)) / 8
    assert rows(ReconstructionLoss(), range(8)).evaluate(8) == {"eval/loss": expected}
    other = rows(ReconstructionLoss(), [1, 3, 5, 7])  # the last batch of each process is another one's first
    theirs = {key: torch.cat([row[key] for row in other.results]) for key in other.results[0]}
    monkeypatch.setattr("crate_mm.evaluation.metrics.gather", lambda mine: [mine, theirs])
    assert rows(ReconstructionLoss(), [0, 2, 4, 6, 1]).evaluate(9) == {"eval/loss": expected}


# Transfer -------------------------------------------------------------------------------------------------------------


def test_a_config_with_a_head_takes_the_backbone(run):
    cfg, opened = load_config_and_checkpoint("transfer/fashion_mnist", run / "epoch_2.pth")
    model = MODELS.build(cfg.model)
    assert isinstance(model, ImageClassifier)
    assert isinstance(model.head.norm, torch.nn.Identity)
    assert tuple(cfg.model.preprocessor.mean) == (0.3,)
    result = transfer_backbone(model, opened)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, opened.weights[f"backbone.{name}"]), name
    assert {name.partition(".")[0] for name in result.dropped} == {"mask_token", "decoder"}
    assert {name.partition(".")[0] for name in result.new} == {"head"}
    images = model.data_preprocessor.normalize(digits(3))
    autoencoder = init_model(None, run / "epoch_2.pth")
    features = autoencoder(images, mode="features")
    assert torch.equal(model.eval()(images, mode="features"), features)
    assert torch.equal(model(images), model.head.fc(features))


def test_at_another_image_size_the_positions_are_those_of_the_autoencoder(run):
    """The table is interpolated as the encoder's forward does it, not by the rule for learned positions."""
    cfg, opened = load_config_and_checkpoint(
        "transfer/fashion_mnist", run / "epoch_2.pth", {"model.backbone.img_size": 12}
    )
    model = MODELS.build(cfg.model).eval()
    result = transfer_backbone(model, opened)
    name = "backbone.embedding.pos_table"
    assert result.resized == {name: "4 x 4 -> 6 x 6 patches, bicubic"}
    assert torch.equal(model.backbone.embedding.pos_table, resize_table(opened.weights[name], (4, 4), (6, 6)))
    images = model.data_preprocessor.normalize(digits(3, 12))
    autoencoder = init_model(None, run / "epoch_2.pth")
    torch.testing.assert_close(model(images, mode="features"), autoencoder(images, mode="features"))
    # What it was trained at goes with the weights: back at 8 x 8 they are not those of the formula.
    again = MODELS.build({**cfg.model.to_dict(), "backbone": BACKBONE})
    back = transfer_backbone(
        again, as_checkpoint({"meta": {"model": cfg.model.to_dict()}, "state_dict": model.state_dict()})
    )
    assert name in back.resized


@pytest.mark.slow
def test_fine_tuning_and_probing_train(run, tmp_path):
    for name, mixin in (("tuned", None), ("probed", "transfer/linear_probe.py")):
        overrides = {"train_cfg.max_epochs": 1, "global_batch_size": 449, "model.head.pool": "cls"}
        cfg, opened = load_config_and_checkpoint("transfer/digits", run / "epoch_2.pth", overrides, mixin=mixin)
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.dataset.transforms = [dict(type="Resize", size=8)]
        cfg.work_dir, cfg.load_from = str(tmp_path / name), str(run / "epoch_2.pth")
        Runner.for_training(cfg, opened).train()
        weights = read_checkpoint(tmp_path / name / "epoch_1.pth")["state_dict"]
        moved = {key for key in weights if key in opened.weights and not torch.equal(weights[key], opened.weights[key])}
        assert bool(moved) == (name == "tuned")


def test_a_model_without_a_backbone_makes_no_classifier():
    with pytest.raises(ValueError, match="the config needs a classifier, but the model Thing has no backbone"):
        as_classifier({"type": "Thing"})
    assert as_classifier({"type": "T", "backbone": {"type": "CRATE"}})["head"] == {"type": "LinearHead"}
    assert as_classifier({"type": "T", "backbone": {"type": "CRATEMAE"}})["head"] == {
        "type": "LinearHead",
        "norm": False,
    }


def test_features_for_nearest_neighbours(run):
    model, loader = init_model(None, run / "epoch_2.pth"), build_loader(load_config("debug"))
    features, labels, positions = extract_features(model, loader)
    assert (features.shape, len(labels), positions.tolist()) == ((450, 24), 450, list(range(450)))
    images = torch.stack([loader.dataset[i]["inputs"] for i in range(4)])
    expected = model.backbone(model.data_preprocessor.normalize(images))[:, 0]
    torch.testing.assert_close(features[:4], expected, rtol=1e-4, atol=1e-5)


# Looking inside -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_measures_of_the_encoder_and_of_the_decoder():
    model, images = build().eval(), torch.randn(3, 1, 8, 8)
    assert {"rc_half", "sparsity", "objective"} <= set(defined_measures(model))
    with measure_layers(model) as encoder, measure_layers(model.decoder) as decoder:
        model(images)
    assert len(encoder.means("sparsity")) == len(decoder.means("rc_out")) == 2
    assert {row.measure for row in decoder.rows()} == {"rc_in", "rc_out", "snr_out", "r_out"}, (
        "a decoder's layer has no code"
    )
    with capture(model.decoder, ("tap_synthesis", "tap_w", "tap_out")) as seen:
        model(images)
    y = model.backbone(images)
    for layer, block in enumerate(model.decoder.blocks):
        g = block.norm_synthesis(y) @ block.dictionary.T
        y = g - block.compress(block.norm_compress(g))
        torch.testing.assert_close(seen["tap_synthesis"][layer], g)
        torch.testing.assert_close(seen["tap_out"][layer], y)
        U, heads = block.subspaces()
        rate = subspace_coding_rate(y @ U, heads, 0.01, True).mean().item()
        assert decoder.means("rc_out")[layer] == pytest.approx(rate, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_a_reconstruction_is_made_of_seen_and_predicted_patches(norm_pix_loss):
    model, images, noise = build(norm_pix_loss=norm_pix_loss).eval(), torch.randn(2, 1, 8, 8), torch.rand(2, 16)
    found = model.reconstruct(images, noise)
    true, filled, masked = (model.patchify(x) for x in (images, found.filled, found.masked))
    assert torch.equal(found.mask, model.mask_of(noise))
    assert torch.equal(filled[~found.mask], true[~found.mask])
    assert not masked[found.mask].any()
    predicted = model(images, noise=noise)
    if norm_pix_loss:
        predicted = predicted * (true.var(-1, keepdim=True) + 1e-6).sqrt() + true.mean(-1, keepdim=True)
    torch.testing.assert_close(filled[found.mask], predicted[found.mask])


def test_the_preprocessors_way_back():
    model, images = build(), digits(4)
    assert torch.equal(model.data_preprocessor.denormalize(model.data_preprocessor.normalize(images)), images)
