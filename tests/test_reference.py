"""The models against the numbers of the official code, float64, 1e-9 relative (tests/data/README.md)."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from crate_mm.analysis.measures import nonzero_fraction, subspace_coding_rate
from crate_mm.analysis.taps import capture
from crate_mm.checkpoints import as_checkpoint
from crate_mm.models import ARCHS, ImageClassifier
from crate_mm.models.families.crate import KEY_MAP
from crate_mm.registry import OPTIMIZERS

from .official import assert_close, assert_gradients, losses_by_step, official_state_dict, reference, reference_images

REFERENCE = reference("crate")


@pytest.fixture(scope="module", params=REFERENCE)
def case(request):
    """The reference entry, our model with its weights, its images and labels."""
    ref = REFERENCE[request.param]
    config = ref["config"]
    arch = {"embed_dim": config["dim"], "depth": config["depth"], "num_heads": config["heads"]}
    named = [name for name, size in ARCHS.items() if size._asdict() == arch]
    model = ImageClassifier(
        backbone=dict(
            type="CRATE",
            arch=named[0] if named else arch,
            img_size=config["image_size"],
            patch_size=config["patch_size"],
        ),
        head=dict(type="LinearHead", num_classes=config["num_classes"], pool=config.get("pool", "cls")),
        label_smoothing=0.1,
    ).double()
    weights = as_checkpoint(official_state_dict(ref["state_dict_shapes"]), num_heads=config["heads"]).weights
    model.load_state_dict(weights)
    return ref, model, reference_images(ref), torch.tensor(ref["labels"])


def test_parameter_count(case):
    ref, model, *_ = case
    assert sum(p.numel() for p in model.parameters()) == ref["num_parameters"]


def test_logits(case):
    ref, model, images, _ = case
    with torch.no_grad():
        logits = model.eval()(images)
    assert_close(logits[:, :10], ref["logits_first10"])
    assert_close(logits.norm(), ref["logits_l2"])


def test_measures_per_layer(case):
    ref, model, images, _ = case
    with torch.no_grad(), capture(model) as seen:
        model.eval()(images)
    heads = ref["config"]["heads"]
    rates = [subspace_coding_rate(w, heads, eps_squared=0.01, unit_length=True).mean() for w in seen["tap_w"]]
    assert_close(rates, ref["coding_rate_eps0.01_per_layer_mean"])
    sparsity = [nonzero_fraction(z).mean() for z in seen["tap_out"]]
    assert_close(sparsity, ref["nonzero_fraction_after_ista_per_layer_mean"])


@pytest.mark.slow
def test_gradients_and_lion_steps(case):
    ref, model, images, labels = case
    start = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = OPTIMIZERS.build(dict(type="Lion", params=model.parameters(), lr=2.4e-4, weight_decay=0.5))
    losses = losses_by_step(
        lambda: model(images, labels, mode="loss")["loss"],
        optimizer,
        len(ref["lion_loss_by_step"]),
        lambda: assert_gradients(model, ref, KEY_MAP),
    )
    assert_close(losses, ref["lion_loss_by_step"])
    model.load_state_dict(start)


@pytest.mark.slow
def test_loss_is_label_smoothed_cross_entropy(case):
    _, model, images, labels = case
    log_p = F.log_softmax(model(images), dim=-1)
    target = torch.full_like(log_p, 0.1 / log_p.shape[1])
    target[range(len(labels)), labels] += 0.9
    torch.testing.assert_close(model(images, labels, mode="loss")["loss"], -(target * log_p).sum(-1).mean())


def test_the_benchmarks_textbook_form_and_the_fused_one(case, monkeypatch):
    ref, model, images, _ = case
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "tools" / "benchmarks"))
    from textbook import textbook_logits

    fused = copy.deepcopy(model).eval()
    fused.backbone.fuse()
    with torch.no_grad():
        for logits in (textbook_logits(model.eval(), images), fused(images)):
            assert_close(logits[:, :10], ref["logits_first10"])
            assert_close(logits.norm(), ref["logits_l2"])
