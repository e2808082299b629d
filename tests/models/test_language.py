"""The task of a language model: loss, counts, checks of the data, and the metric."""

import math

import numpy as np
import pytest
import torch

from crate_mm.datasets import Digits, Windows
from crate_mm.evaluation import TokenLoss
from crate_mm.models import LanguageModel
from crate_mm.registry import MODELS
from crate_mm.testing import check_task

ARCH = dict(embed_dim=12, depth=2, num_heads=3)


def build(**options) -> LanguageModel:
    torch.manual_seed(0)
    backbone = dict(type="CausalCRATE", arch=ARCH, vocab_size=20, context_length=6)
    return MODELS.build(dict(type="LanguageModel", backbone=backbone, tokenizer="bytes", **options)).double()


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture
def batch():
    tokens = torch.randint(20, (3, 7), generator=torch.Generator().manual_seed(0))
    return {"inputs": tokens[:, :-1], "labels": tokens[:, 1:].clone(), "sample_idx": torch.arange(3)}


def test_the_loss_is_the_mean_cross_entropy_of_the_labels_that_count(model, batch):
    batch["labels"][0, :4] = -100
    logits = model(batch["inputs"], mode="tensor")
    assert logits.shape == (3, 6, 20)
    log_p = logits.log_softmax(-1)
    nats = [-log_p[b, n, t] for b, row in enumerate(batch["labels"]) for n, t in enumerate(row) if t >= 0]
    assert model.count(batch) == len(nats) == 14
    loss = model(batch["inputs"], labels=batch["labels"], mode="loss")["loss"]
    torch.testing.assert_close(loss, torch.stack(nats).mean(), rtol=1e-12, atol=0)
    (rows,) = model(**batch, mode="predict")
    torch.testing.assert_close(rows["nats"].sum(), torch.stack(nats).sum(), rtol=1e-12, atol=0)
    assert rows["labels"].tolist() == [2, 6, 6]
    assert model.features(**batch).shape == (3, 12)


def test_a_batch_without_labels_has_a_loss_of_zero(model, batch):
    batch["labels"][:] = -100
    assert (model.count(batch), model.loss(**batch)["loss"].item()) == (0, 0)


def test_it_meets_the_contract(batch):
    check_task(build().float(), batch)


def test_a_window_counts_once_in_the_metric():
    metric = TokenLoss()
    metric.dataset_meta = {"classes": None, "tokenizer": "bytes", "tokens": 30, "bytes": 60}
    for rows in ([0, 1], [2, 0]):  # padding gives window 0 to two processes
        nats = torch.tensor([10.0 * (row + 1) for row in rows])
        labels = torch.tensor([[5, 5, 2][row] for row in rows])
        metric.process({}, [{"sample_idx": torch.tensor(rows), "nats": nats, "labels": labels}])
    assert metric.evaluate(3) == {"eval/loss": 5.0, "eval/bits_per_byte": 5.0 / math.log(2) / 2}


def test_bits_per_byte_are_left_out_if_the_bytes_are_unknown(caplog):
    metric = TokenLoss()
    metric.dataset_meta = {"classes": None}
    metric.process({}, [{key: torch.ones(1) for key in ("sample_idx", "nats", "labels")}])
    assert metric.evaluate(1) == {"eval/loss": 1.0}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            lambda: Windows(np.arange(30) % 20, 7),
            r"gives windows of 7 tokens, but the backbone has 6 positions: set",
        ),
        (
            lambda: Windows(np.arange(30), 6),
            r"'Windows' has the token ID 29, but the backbone's vocabulary has 20 tokens: .*=30",
        ),
        (lambda: Digits("train"), r"of type 'Digits' gives None as inputs: expected token IDs, int64 of shape \(N\)"),
    ],
)
def test_data_that_do_not_fit_are_refused(model, data, message):
    with pytest.raises(ValueError, match=message):
        model.check_data(data(), "train")


def test_a_backbone_that_is_not_causal_is_refused():
    with pytest.raises(ValueError, match="a language model needs a causal backbone: let CRATE inherit from"):
        LanguageModel(dict(type="CRATE", arch=ARCH, img_size=8, patch_size=4))


def test_tokens_of_another_tokenizer_are_refused(model):
    data = Windows(np.arange(20), 6)
    model.check_data(data, "val")
    data.description = {"tokenizer": {"name": "words.json"}}
    with pytest.raises(
        ValueError, match=r"tokens of the tokenizer .*words.json.*, but the model was trained on .* bytes"
    ):
        model.check_data(data, "val")
