"""CRATE-alpha against the numbers of the authors' code, float64, 1e-9 relative (tests/data/README.md)."""

import numpy as np
import pytest
import torch

from crate_mm import from_official, get_model
from crate_mm.analysis.gather import defined_measures, measure_layers
from crate_mm.analysis.measures import nonzero_fraction
from crate_mm.analysis.taps import capture
from crate_mm.checkpoints import as_checkpoint
from crate_mm.checkpoints.fit import load_strict
from crate_mm.models import ALPHA_ARCHS, CRATEAlpha, ImageClassifier
from crate_mm.models.families.alpha import KEY_MAP
from crate_mm.models.layers import ISTA, OvercompleteISTA
from crate_mm.models.translate import rename
from tests.official import official_state_dict, reference

REFERENCE = reference("alpha")
REF = REFERENCE["micro"]
CONFIG = REF["config"]
ARCH = dict(embed_dim=CONFIG["dim"], depth=CONFIG["depth"], num_heads=CONFIG["heads"])
LETTERS = {"T": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge"}


def official():
    return official_state_dict(REF["generated_shapes"])


def images():
    size = (REF["batch_size"], 3, CONFIG["image_size"], CONFIG["image_size"])
    return torch.from_numpy(np.random.RandomState(0).standard_normal(size))


def classifier(norm_eps=1e-5, **backbone):
    return ImageClassifier(
        dict(type="CRATEAlpha", arch=ARCH, img_size=CONFIG["image_size"], patch_size=CONFIG["patch_size"], **backbone),
        dict(type="LinearHead", num_classes=CONFIG["num_classes"], norm_eps=norm_eps),
        label_smoothing=0.1,
    ).double()


@pytest.fixture
def model():
    """The reference model, with the authors' epsilon of PyTorch in its head."""
    built = classifier()
    built.load_state_dict(as_checkpoint(official(), num_heads=CONFIG["heads"]).weights)
    return built


def assert_close(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-9, atol=0)


def test_logits(model):
    assert sum(p.numel() for p in model.parameters()) == REF["num_parameters"]
    with torch.no_grad():
        logits = model.eval()(images())
    assert_close(logits[:, :10], REF["logits_first10"])
    assert_close(logits.norm(), REF["logits_l2"])


def test_codes_of_both_steps(model):
    with torch.no_grad(), capture(model, ("tap_code1", "tap_code")) as seen:
        model.eval()(images())
    codes = zip(seen["tap_code1"], seen["tap_code"])
    rows = [[nonzero_fraction(a1).mean(), nonzero_fraction(a2).mean(), a2.norm()] for a1, a2 in codes]
    assert_close(rows, REF["code_nonzero_fraction_step1_step2_and_l2_per_layer"])


def test_the_measures_are_of_the_inner_code(model):
    """The layer's output is no code, so that the objective, which would count its entries, is not defined."""
    block = model.backbone.blocks[0]
    assert (block.returns_code, block.lambd) == (False, 0.1)
    assert set(defined_measures(model)) == {
        "rc_half",
        "sparsity",
        "sparsity_step1",
        "rc_z",
        "rc_in",
        "rc_out",
        "snr_out",
        "r_out",
    }
    with torch.no_grad(), measure_layers(model) as measures:
        model.eval()(images())
    first, second, _ = zip(*REF["code_nonzero_fraction_step1_step2_and_l2_per_layer"])
    assert_close(measures.means("sparsity_step1"), first)
    assert_close(measures.means("sparsity"), second)
    with (
        pytest.raises(ValueError, match="CRATEAlpha has none of objective"),
        measure_layers(model, measures=["objective"]),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("head_layernorm_eps_1e-6", dict(norm_eps=1e-6)),
        ("no_residual", dict(residual=False)),
        ("coupled", dict(decoupled=False)),
        ("no_residual_coupled", dict(decoupled=False, residual=False)),
    ],
)
def test_the_papers_ablation_is_a_config(name, options):
    assert set(REF["variant_logits_first10"]) == {
        "head_layernorm_eps_1e-6",
        "no_residual",
        "coupled",
        "no_residual_coupled",
    }
    built = classifier(**options)
    weights = as_checkpoint(official(), num_heads=CONFIG["heads"]).weights
    built.load_state_dict({key: value for key, value in weights.items() if key in built.state_dict()})
    with torch.no_grad():
        assert_close(built.eval()(images())[:, :10], REF["variant_logits_first10"][name])


def test_without_an_overcomplete_dictionary_the_step_is_crates():
    block = CRATEAlpha(ARCH, 32, 8, overcomplete=False, decoupled=False, residual=False).blocks[0]
    assert isinstance(block.sparsify, ISTA)
    assert block.returns_code
    with pytest.raises(ValueError, match="decoupled=True needs overcomplete=True"):
        CRATEAlpha(ARCH, 32, 8, overcomplete=False)


KERNELS = ("embedding.proj.weight", "compress.proj.weight", "compress.out.weight", "head.fc.weight")


@pytest.mark.parametrize(
    ("decayed", "clip", "name"),
    [
        (KERNELS, None, "adamw_loss_by_step"),  # the dictionaries do not decay
        (KERNELS, 1.0, "adamw_clip1_loss_by_step"),
        (("",), None, "adamw_all_decayed_loss_by_step"),
    ],
)
def test_gradients_and_adamw_steps(model, decayed, clip, name):
    settings = dict(REF["adamw"])
    decay = settings.pop("weight_decay")
    groups = [dict(params=[], weight_decay=0.0), dict(params=[], weight_decay=decay)]
    for key, parameter in model.named_parameters():
        groups[key.endswith(decayed)]["params"].append(parameter)
    optimizer = torch.optim.AdamW(groups, **settings)
    losses = []
    for step in range(4):
        loss = model(images(), torch.tensor(REF["labels"]), mode="loss")["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            norms = {key: p.grad.norm().item() for key, p in model.named_parameters()}
            theirs = rename(REF["grad_l2_by_parameter"], KEY_MAP, "the authors' code")[0]
            assert norms.keys() == theirs.keys()
            assert_close([norms[key] for key in theirs], list(theirs.values()))
            assert_close(np.linalg.norm(list(norms.values())), REF["grad_l2_total"])
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    assert_close(losses[0], REF["loss"])
    assert_close(losses, REF[name])


@pytest.mark.parametrize("name", REFERENCE["parameter_counts_224_by_size_patch_classes"])
def test_parameter_counts(name):
    letter, patch, classes = name.split("/")
    with torch.device("meta"):
        built = get_model(f"crate_alpha_{LETTERS[letter]}", int(classes), patch_size=int(patch))
    count = sum(p.numel() for p in built.parameters())
    assert count == REFERENCE["parameter_counts_224_by_size_patch_classes"][name]
    assert list(ALPHA_ARCHS) == list(LETTERS.values())


def test_weights_start_as_in_the_jax_code():
    torch.manual_seed(0)
    built = get_model("crate_alpha_small", num_classes=2000, img_size=160)
    d, block = 576, built.backbone.blocks[3]
    for value in (block.compress.proj.weight, block.compress.out.weight, built.backbone.embedding.pos_embed):
        assert value.std().item() == pytest.approx(0.02, rel=0.03)
    assert built.head.fc.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert built.backbone.embedding.cls_token.std().item() == pytest.approx(1e-6, rel=0.2)
    for value, fan_in in (
        (block.sparsify.dictionary, d),
        (block.sparsify.decoder, d),
        (built.backbone.embedding.proj.weight, 3 * 16 * 16),
    ):
        bound = (6 / fan_in) ** 0.5
        assert 0.99 * bound < value.abs().max().item() <= bound
    assert not built.head.fc.bias.any()
    assert not built.backbone.embedding.proj.bias.any()
    assert block.compress.out.bias is None
    assert (block.norm_compress.eps, built.head.norm.eps) == (1e-6, 1e-6)


def jax_state_dict(prefix="params/", flat=False):
    """The reference weights under the names and in the shapes of the flax module."""
    K, p, d = CONFIG["heads"], CONFIG["dim"] // CONFIG["heads"], CONFIG["dim"]
    weights = official()
    named = {
        "cls": weights["cls_token"],
        "pos_embedding": weights["pos_embedding"],
        "embedding/kernel": weights["conv1.weight"].permute(2, 3, 1, 0),
        "embedding/bias": weights["conv1.bias"],
        "encoder_norm/scale": weights["mlp_head.0.weight"],
        "encoder_norm/bias": weights["mlp_head.0.bias"],
        "head/kernel": weights["mlp_head.1.weight"].T,
        "head/bias": weights["mlp_head.1.bias"],
    }
    for layer in range(CONFIG["depth"]):
        theirs, block = f"transformer.layers.{layer}", f"Transformer/encoderblock_{layer}"
        attention = f"{block}/MultiHeadDotProductSubspaceAttention_0"
        U, out = weights[f"{theirs}.0.fn.qkv.weight"].T, weights[f"{theirs}.0.fn.to_out.0.weight"].T
        named |= {
            f"{attention}/proj/kernel": U if flat else U.reshape(d, K, p),
            f"{attention}/out/kernel": out if flat else out.reshape(K, p, d),
            f"{block}/OvercompleteISTABlock_0/D": weights[f"{theirs}.1.fn.D"],
            f"{block}/OvercompleteISTABlock_0/D1": weights[f"{theirs}.1.fn.D1"],
        }
        for number in (0, 1):
            named[f"{block}/LayerNorm_{number}/scale"] = weights[f"{theirs}.{number}.norm.weight"]
            named[f"{block}/LayerNorm_{number}/bias"] = weights[f"{theirs}.{number}.norm.bias"]
    return {prefix + name: value.contiguous() for name, value in named.items()}


@pytest.mark.parametrize(("prefix", "flat"), [("params/", False), ("", False), ("params/", True)])
def test_jax_weights_in_an_npz_file(prefix, flat, tmp_path):
    """They tell their heads where they keep them apart, and their head's epsilon is that of the JAX code."""
    arrays = {name: value.numpy() for name, value in jax_state_dict(prefix, flat).items()}
    if prefix:
        arrays["opt/0/count"] = np.int32(7)
    np.savez(tmp_path / "alpha.npz", **arrays)
    if flat:
        with pytest.raises(ValueError, match="no published CRATE-alpha has width 48 and depth 2: give num_heads"):
            from_official(tmp_path / "alpha.npz")
    built = from_official(tmp_path / "alpha.npz", **({"num_heads": 3} if flat else {}))
    with torch.no_grad():
        assert_close(built(images())[:, :10], REF["variant_logits_first10"]["head_layernorm_eps_1e-6"])
    if not flat:
        with pytest.raises(ValueError, match="it has 3 heads, but num_heads is 6"):
            from_official(tmp_path / "alpha.npz", num_heads=6)


def test_the_translation_says_what_the_model_is():
    opened = as_checkpoint(official(), num_heads=3, ista_lambda=0.2)
    assert opened.model["backbone"] == dict(type="CRATEAlpha", arch=ARCH, img_size=32, patch_size=8, ista_lambda=0.2)
    assert "eta = 0.1" in opened.meta["assumed"]
    coupled = {key: value for key, value in official().items() if not key.endswith(".D1")}
    opened = as_checkpoint(coupled, num_heads=3)
    assert opened.model["backbone"]["decoupled"] is False
    built = classifier(decoupled=False)
    load_strict(built, opened)


def test_published_shapes_tell_their_heads():
    with torch.device("meta"):
        weights = get_model("crate_alpha_large", patch_size=14).state_dict()
    theirs = {}
    for pattern, ours in KEY_MAP:  # read backwards: our names to theirs
        for layer in range(24):
            for part in ("weight", "bias"):
                groups = iter([str(layer), part] if r"(\d+)" in pattern else [part])
                name = pattern.replace(r"(\d+)", "{}").replace("(weight|bias)", "{}").replace("\\", "")
                values = list(groups)[: name.count("{}")]
                key = name.format(*values)
                target = ours.replace(r"\1", values[0] if values else "").replace(r"\2", values[-1] if values else "")
                if target in weights:
                    theirs[key] = weights[target]
    assert len(theirs) == len(weights)
    opened = as_checkpoint(theirs)
    assert opened.model["backbone"] == dict(type="CRATEAlpha", arch="large", img_size=224, patch_size=14)
    assert "16 heads" in opened.meta["assumed"]


@pytest.mark.parametrize("ratio", [1, 3])
@pytest.mark.parametrize("decoupled", [True, False])
def test_the_step_is_its_equation(ratio, decoupled):
    torch.manual_seed(0)
    step = OvercompleteISTA(12, ratio, step_size=0.3, lambd=0.05, decoupled=decoupled).double()
    x, D = torch.randn(2, 5, 12, dtype=torch.float64), step.dictionary
    a1 = torch.relu(0.3 * (x @ D) - 0.3 * 0.05)
    a2 = torch.relu(a1 + 0.3 * (x - a1 @ D.T) @ D - 0.3 * 0.05)
    torch.testing.assert_close(step(x), a2 @ (step.decoder if decoupled else D).T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("arguments", [dict(step_size="x"), dict(lambd=float("nan")), dict(ratio=0), dict(ratio=1.5)])
def test_the_step_refuses(arguments):
    with pytest.raises(ValueError, match="OvercompleteISTA needs "):
        OvercompleteISTA(8, **arguments)
