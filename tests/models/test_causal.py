"""Causal language models: reference numbers (tests/data/README.md, 1e-9), the cache, causality, bad inputs."""

import re
from functools import partial

import numpy as np
import pytest
import torch

from crate_mm import from_official
from crate_mm.extras.interop.export import export, load_program
from crate_mm.models import (
    AOT_ARCHS,
    CAUSAL_CRATE_ARCHS,
    CAUSAL_TOST_ARCHS,
    GPT2,
    GPT2_ARCHS,
    CausalAoT,
    CausalCRATE,
    CausalToST,
    LanguageModel,
)
from crate_mm.models.backbone import registered_backbones
from crate_mm.models.families.causal import CausalBackbone
from crate_mm.registry import BACKBONES
from crate_mm.testing import check_backbone
from tests.official import official_state_dict, reference

LM, TOST, AOT = reference("lm"), reference("tost"), reference("aot")
REFERENCES = {
    "CRATE": LM["complete_micro"],
    "CRATE, overcomplete": LM["overcomplete_micro"],
    "ToST": TOST["language_micro"],
    "AoT": AOT["language_micro"],
}
SIZE = dict(arch=dict(embed_dim=24, depth=2, num_heads=3), vocab_size=29, context_length=16)
FAMILIES = [name for name, kind in registered_backbones().items() if issubclass(kind, CausalBackbone)]
VARIANTS = {
    **{name: dict(type=name) for name in FAMILIES},
    "overcomplete": dict(type="CausalCRATE", overcomplete=True),
    "tied": dict(type="CausalCRATE", compress=dict(type="MSSA", tied=True, causal=True)),
    "MHSA": dict(type="CausalAoT", compress=dict(type="SoftmaxAttention", causal=True)),
    "biased ToST": dict(type="CausalToST", bias=True, layer_scale=1.0),
    "OpenAI's GPT-2": dict(type="GPT2", tanh_gelu=True, bias=False),
}


def built(variant, dtype=torch.float64):
    """A model with weights that are far from their initial values, so that every operator matters."""
    torch.manual_seed(0)
    model = BACKBONES.build({**SIZE, **VARIANTS[variant]}).to(dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def ids(batch=3, length=16):
    return torch.randint(29, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=VARIANTS)
def backbone(request):
    return built(request.param)


def official(case, **model_args):
    heads = {} if "num_heads" in model_args else {"num_heads": case["config"]["heads"]}
    return from_official(official_state_dict(case["generated_shapes"]), **heads, **model_args)


@pytest.mark.parametrize("label", REFERENCES)
def test_the_authors_numbers(label):
    case = REFERENCES[label]
    close = partial(np.testing.assert_allclose, rtol=1e-9, atol=0)
    model, tokens = official(case).train(), torch.tensor(case["token_ids"])
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    assert sum(parameter.numel() for parameter in model.parameters()) == case["num_parameters"]
    logits = model(inputs, mode="tensor")
    close(logits[:, -1, :10].detach(), case["logits_last_token_first10"])
    close(logits.norm().item(), case["logits_l2"])
    loss = model(inputs, labels=labels, mode="loss")["loss"]
    close(loss.item(), case["loss"])
    loss.backward()
    norms = [parameter.grad.norm().item() for parameter in model.parameters()]
    close(sorted(norms), sorted(case["grad_l2_by_parameter"].values()))
    close(np.linalg.norm(norms), case["grad_l2_total"])
    settings = {**case["adamw"]}
    decay = settings.pop("weight_decay")
    kept = [p for n, p in model.named_parameters() if p.ndim < 2 or n.endswith((".temp", ".denom_bias"))]
    decayed = [p for p in model.parameters() if all(p is not other for other in kept)]
    groups = [dict(params=decayed, weight_decay=decay), dict(params=kept, weight_decay=0)]
    optimizer, losses = torch.optim.AdamW(groups, **settings), []
    for _ in case["adamw_loss_by_step"]:
        loss = model(inputs, labels=labels, mode="loss")["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    close(losses, case["adamw_loss_by_step"])


@pytest.mark.parametrize("label", ["CRATE", "CRATE, overcomplete"])
def test_the_authors_sparsity(label):
    case = REFERENCES[label]
    model, tokens = official(case), torch.tensor(case["token_ids"])
    codes = []
    for layer in model.backbone.layers:
        layer.sparsify.tap_code.register_forward_hook(lambda _module, _inputs, code: codes.append(code))
    model(tokens[:, :-1])
    assert [(code != 0).double().mean().item() for code in codes] == pytest.approx(
        case["nonzero_fraction_of_code_per_layer"], rel=1e-12
    )


@pytest.mark.parametrize(
    ("kind", "arguments", "parameters"),
    [
        (CausalCRATE, {}, LM["parameter_counts"]["complete_base_vocab50304_block1024"]),
        (CausalCRATE, dict(arch="medium"), LM["parameter_counts"]["complete_medium_vocab50304_block1024"]),
        (CausalCRATE, dict(overcomplete=True), LM["parameter_counts"]["overcomplete_base_vocab50304_block1024"]),
        (
            CausalCRATE,
            dict(arch="medium", overcomplete=True),
            LM["parameter_counts"]["overcomplete_medium_vocab50304_block1024"],
        ),
        (CausalAoT, {}, AOT["parameter_counts_vocab50304_block1024"]["24_layers_width_1024"]["all"]),
        (CausalAoT, dict(arch="medium"), AOT["parameter_counts_vocab50304_block1024"]["36_layers_width_1280"]["all"]),
        (GPT2, dict(vocab_size=50257), 124_439_808),  # OpenAI's file
    ],
)
def test_the_published_sizes(kind, arguments, parameters):
    with torch.device("meta"):
        model = kind(**arguments)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(("arch", "millions"), [("base", 110), ("medium", 304), ("large", 655)])
def test_the_published_sizes_of_tost(arch, millions):
    """The paper rounds, and does not say what it counts: here it is all but the positions."""
    with torch.device("meta"):
        model = CausalToST(arch)
    counted = sum(parameter.numel() for parameter in model.parameters()) - model.position_embedding.weight.numel()
    assert round(counted / 1e6) == millions


@pytest.mark.parametrize("archs", [CAUSAL_CRATE_ARCHS, CAUSAL_TOST_ARCHS, GPT2_ARCHS, AOT_ARCHS])
def test_heads_divide_the_width(archs):
    assert all(arch.embed_dim % arch.num_heads == 0 for arch in archs.values())


def test_the_contract(backbone):
    check_backbone(backbone)


def test_initial_values_are_those_of_the_code():
    torch.manual_seed(0)
    model = GPT2(dict(embed_dim=64, depth=8, num_heads=4), vocab_size=99, context_length=32)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            expected = 0.02 / 4 if "compress.out" in name or "fc2" in name else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.1), name
        else:
            assert (parameter == ("norm" in name and name.endswith("weight"))).all(), name
    tost = CausalToST(**SIZE).layers[0]
    assert (tost.gamma_compress == 1e-5).all()
    assert (tost.gamma_sparsify == 1e-5).all()
    assert not tost.compress.denom_bias.any()
    assert (tost.compress.temp == 1).all()


def test_logits_are_tied_to_the_embedding(backbone):
    tokens = backbone(ids())
    assert torch.equal(backbone.logits(tokens), tokens @ backbone.token_embedding.weight.T)


@pytest.mark.parametrize("lengths", [[1] * 16, [5, 1, 1, 9], [16], [7, 9]])
def test_a_cache_changes_nothing(backbone, lengths):
    with torch.no_grad():
        full, cache = backbone(ids()), backbone.new_cache()
        parts = [backbone(part, cache) for part in ids().split(lengths, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), full, rtol=1e-12, atol=1e-12)
    assert cache.length == 16


def test_the_cache_of_tost_does_not_grow():
    backbone, cache, numbers = built("CausalToST"), None, []
    cache = backbone.new_cache()
    for part in ids().split([1, 6, 9], dim=1):
        backbone(part, cache)
        tensors = [value for own in cache.layers for value in own.values() if isinstance(value, torch.Tensor)]
        numbers.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors))
    assert numbers == [2 * 3 * 3 * (8 + 8 + 1) * 8] * 3  # layers, texts, heads, statistics, bytes


def test_a_later_token_changes_nothing_before_it(backbone):
    tokens, place = ids(), 9
    other = tokens.clone()
    other[:, place] = (other[:, place] + 1) % 29
    with torch.no_grad():
        before, after = backbone(tokens), backbone(other)
    torch.testing.assert_close(after[:, :place], before[:, :place], rtol=1e-12, atol=1e-12)
    changed = (after - before).abs().amax(-1)
    assert (changed[:, place:] > 1e-6).all()


def test_maps_are_causal(backbone):
    """The attention gives nothing to later tokens; a membership is that of the forward pass."""
    for layer in backbone.layers:
        seen = {}
        layer.compress.tap_w.register_forward_hook(lambda _m, _i, w, seen=seen: seen.update(w=w))
        if "tap_pi" in layer.taps():
            layer.compress.tap_pi.register_forward_hook(lambda _m, _i, pi, seen=seen: seen.update(pi=pi))
        with torch.no_grad():
            backbone(ids())
            maps = layer.maps(seen["w"])
        if "pi" in seen:
            assert torch.equal(maps["membership"].values.squeeze(2), seen["pi"])
        else:
            assert not maps["attention"].values.triu(1).any()
            torch.testing.assert_close(maps["attention"].values.sum(-1), torch.ones(3, 3, 16, dtype=torch.float64))


@pytest.mark.parametrize("family", FAMILIES)
def test_bad_inputs_are_refused(family):
    backbone = built(family)
    for inputs, sentence in (
        (torch.zeros(1, 17, dtype=torch.int64), "has positions for 16 tokens (context_length), got 17"),
        (
            torch.tensor([[3, 29]]),
            "has a vocabulary of 29 tokens (vocab_size), got the ID 29: expected IDs from 0 to 28",
        ),
        (
            torch.tensor([[3, -1]]),
            "has a vocabulary of 29 tokens (vocab_size), got the ID -1: expected IDs from 0 to 28",
        ),
        (torch.zeros(1, 3), "takes integer token IDs (B, N), got torch.float32 of shape (1, 3)"),
        (torch.zeros(3, dtype=torch.int64), "takes integer token IDs (B, N), got torch.int64 of shape (3,)"),
    ):
        with pytest.raises(ValueError, match=f"^{family} {re.escape(sentence)}$"):
            backbone(inputs)
    cache = backbone.new_cache()
    backbone(ids(1, 10), cache)
    with pytest.raises(ValueError, match=r"has positions for 16 tokens \(context_length\), got 17"):
        backbone(ids(1, 7), cache)
    assert cache.length == 10


@pytest.mark.parametrize("name", ["vocab_size", "context_length"])
@pytest.mark.parametrize("size", [0, 2.0, True])
def test_a_size_that_is_none_is_refused(name, size):
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, got {size}"):
        CausalCRATE(**{**SIZE, name: size})


def test_a_tssa_for_shorter_texts_is_refused():
    backbone = CausalCRATE(**SIZE, compress=dict(type="TSSA", context_length=8))
    backbone(ids(1, 8))
    with pytest.raises(ValueError, match=r"TSSA has a denom_bias for 8 tokens \(context_length\), got 9"):
        backbone(ids(1, 9))


def test_an_operator_that_sees_later_tokens_is_refused():
    with pytest.raises(
        ValueError, match="CausalAoT needs a causal compression, but this CBSA is not causal: set compress"
    ):
        CausalAoT(**SIZE, compress=dict(type="CBSA"))


EXPORTED = ("CausalCRATE", "overcomplete", "biased ToST", "OpenAI's GPT-2")  # every operator


@pytest.mark.slow
@pytest.mark.parametrize("label", EXPORTED)
@pytest.mark.parametrize("kind", ["torch-export", "torchscript"])
def test_an_exported_model_takes_any_number_of_texts(label, kind, tmp_path):
    model = LanguageModel(built(label, torch.float32)).eval()
    manifest = export(model, tmp_path / "program", kind, ids(), dynamic="batch")
    assert (manifest["input"]["any"], manifest["input"]["dtype"]) == (["batch"], "int64")
    run = load_program(tmp_path / "program", kind)
    for tokens in (ids(5), ids(1)):
        with torch.no_grad():
            torch.testing.assert_close(run(tokens), model(tokens), rtol=1e-4, atol=1e-4)
