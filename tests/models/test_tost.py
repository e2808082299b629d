"""ToST for images against the numbers of the authors' code, float64, 1e-9 relative (tests/data/README.md)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crate_mm import from_official, get_model
from crate_mm.analysis.attention import cls_attention
from crate_mm.analysis.gather import defined_measures, measure_layers
from crate_mm.analysis.measures import subspace_coding_rate
from crate_mm.analysis.taps import capture
from crate_mm.checkpoints import as_checkpoint
from crate_mm.models import TOST_ARCHS, ImageClassifier, ToST
from crate_mm.models.families.tost import KEY_MAP, mlp_ratio_of
from crate_mm.models.layers import MLP
from crate_mm.models.translate import rename
from tests.official import assert_close, assert_gradients, losses_by_step, official_state_dict, reference
from tests.official import reference_images as images

REFERENCE = reference("tost")
CASES = [name for name in REFERENCE if name.startswith("micro")]
COUNTS = {name: n for name, n in REFERENCE["parameter_counts_1000_classes"].items() if name.startswith("tost")}
MICRO = dict(embed_dim=48, depth=2, num_heads=3)


def official(name="micro"):
    """The generated parameters, and BatchNorm's statistics as they start."""
    ref = REFERENCE[name]
    weights = official_state_dict(ref["generated_shapes"])
    for key in ref["buffers"]:
        like = weights[f"{key.rpartition('.')[0]}.weight"]
        start = {"running_mean": torch.zeros_like(like), "running_var": torch.ones_like(like)}
        weights[key] = start.get(key.rpartition(".")[2], torch.tensor(0))
    return weights


def reference_case(name):
    """The reference entry, our model with its weights, its images and labels."""
    ref = REFERENCE[name]
    config = ref["config"]
    model = ImageClassifier(
        dict(
            type="ToST",
            arch=dict(embed_dim=config["dim"], depth=config["depth"], num_heads=config["heads"]),
            img_size=config["image_size"],
            patch_size=config["patch_size"],
            layer_scale=1.0,
        ),
        dict(type="LinearHead", num_classes=config["num_classes"], norm_eps=1e-6),
        label_smoothing=0.1,
    ).double()
    model.load_state_dict(as_checkpoint(official(name)).weights)
    return ref, model, images(ref), torch.tensor(ref["labels"])


@pytest.fixture(params=CASES)
def case(request):
    return reference_case(request.param)


def test_logits(case):
    ref, model, pixels, _ = case
    assert sum(p.numel() for p in model.parameters()) == ref["num_parameters"]
    with torch.no_grad():
        logits = model.eval()(pixels)
    assert_close(logits[:, :10], ref["logits_first10"])
    assert_close(logits.norm(), ref["logits_l2"])


def test_each_layers_operator(case):
    ref, model, pixels, _ = case
    seen = []
    for block in model.backbone.blocks:
        block.compress.register_forward_hook(lambda _, inputs, out: seen.append([inputs[0].norm(), out.norm()]))
    with torch.no_grad():
        model.eval()(pixels)
    assert_close(seen, ref["tssa_input_and_output_l2_per_layer"])


def test_the_operator_alone(case):
    ref, model, *_ = case
    tssa = model.backbone.blocks[0].compress
    x = torch.from_numpy(np.random.RandomState(5).standard_normal((2, 7, ref["config"]["dim"])))
    membership = []
    tssa.tap_pi.register_forward_hook(lambda _, inputs, out: membership.append(out))
    with torch.no_grad():
        assert_close(tssa(x)[:, 0, :10], ref["tssa_alone_first10"])
    assert_close(membership[0][0, :, 0], ref["tssa_alone_membership_image0_token0_by_head"])


def test_fourier_positions(case):
    ref, model, *_ = case
    with torch.no_grad():
        positions = model.backbone.embedding.positions(3, 4)
    assert positions.shape == (1, ref["config"]["dim"], 3, 4)
    assert_close(positions.flatten()[:10], ref["fourier_position_3x4_first10"])
    assert_close(positions.norm(), ref["fourier_position_3x4_l2"])


def test_images_of_another_size():
    ref, model, *_ = reference_case("micro")
    with torch.no_grad():
        logits = model.eval()(images(ref, ref["other_size"]["height_width"]))
    assert_close(logits[:, :10], ref["other_size"]["logits_first10"])


def test_gradients_statistics_and_adamw_steps(case):
    ref, model, pixels, labels = case
    settings = dict(ref["adamw"])
    decay = settings.pop("weight_decay")
    groups = [dict(params=[], weight_decay=0.0), dict(params=[], weight_decay=decay)]
    for name, parameter in model.named_parameters():
        groups[parameter.ndim > 1 and "cls_token" not in name]["params"].append(parameter)
    optimizer = torch.optim.AdamW(groups, **settings)

    def after_first():
        assert_gradients(model, ref, KEY_MAP)
        statistics = rename(ref["running_stats_l2_after_one_forward"], KEY_MAP, "the official code")[0]
        assert_close([model.state_dict()[name].norm() for name in statistics], list(statistics.values()))

    losses = losses_by_step(
        lambda: model.train()(pixels, labels, mode="loss")["loss"], optimizer, steps=4, after_first=after_first
    )
    assert_close(losses[0], ref["train_loss"])
    assert_close(losses, ref["adamw_loss_by_step"])
    with torch.no_grad():
        assert_close(model.eval()(pixels)[:, :10], ref["eval_logits_first10_after_steps"])


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    arch, patch = name.removeprefix("tost_cab_").rsplit("_p", 1)
    with torch.device("meta"):
        built = get_model(f"tost_{arch}", patch_size=int(patch))
    assert sum(p.numel() for p in built.parameters()) == COUNTS[name]
    assert set(TOST_ARCHS) == {key.removeprefix("tost_cab_").rsplit("_p", 1)[0] for key in COUNTS}


@pytest.mark.parametrize("name", CASES)
def test_official_weights(name):
    """Shapes tell all but the images' size, on which no weight depends."""
    ref = REFERENCE[name]
    weights = {key: value for key, value in official(name).items()}
    model = from_official({"model": weights, "epoch": 3}, img_size=ref["config"]["image_size"])
    assert model.backbone.embedding.patch_size == (ref["config"]["patch_size"],) * 2
    with torch.no_grad():
        assert_close(model(images(ref))[:, :10], ref["logits_first10"])
    assert as_checkpoint(weights).model["backbone"]["img_size"] == 224
    with pytest.raises(ValueError, match="it has 3 heads, but num_heads is 4"):
        as_checkpoint(weights, num_heads=4)


def with_options(qkv_bias=True, mlp_ratio=4.0):
    """The generated parameters of the official code's model with these arguments of its constructor."""
    shapes = {}
    for name, shape in REFERENCE["micro"]["generated_shapes"].items():
        if qkv_bias or not name.endswith("qkv.bias"):
            shapes[name] = [int(48 * mlp_ratio) if side == 192 else side for side in shape]
    statistics = {name: official()[name] for name in REFERENCE["micro"]["buffers"]}
    return {**official_state_dict(shapes), **statistics}


def textbook(weights, pixels, tokens_norm, depth=2, heads=3):
    """The official code's forward pass in evaluation, plainly, by its own names."""

    def linear(name, x):
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def mlp(name, x):
        return linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", x)))

    def split(x):  # (B, N, d) to (B, K, N, p)
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def tssa(name, x):
        w = split(linear(f"{name}.qkv", x))
        pi = ((w / w.norm(dim=-2, keepdim=True)) ** 2).sum(-1) * weights[f"{name}.temp"]
        pi = pi.softmax(dim=1)
        moments = (pi / (pi.sum(-1, keepdim=True) + 1e-8))[:, :, None] @ w**2
        return linear(f"{name}.to_out.0", (-w * pi[..., None] / (1 + moments)).transpose(1, 2).flatten(2))

    def class_attention(name, x):
        q, k, v = map(split, linear(f"{name}.qkv", x).chunk(3, dim=-1))
        shares = (q[:, :, :1] @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        return torch.cat([linear(f"{name}.proj", (shares @ v).transpose(1, 2).flatten(2)), x[:, 1:]], dim=1)

    for n in (0, 2, 4):
        name = f"patch_embed.proj.{n}"
        pixels = F.conv2d(pixels, weights[f"{name}.0.weight"], stride=2, padding=1)
        terms = (weights[f"{name}.1.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        pixels = F.batch_norm(pixels, *terms)
        pixels = F.gelu(pixels) if n < 4 else pixels
    h, w = pixels.shape[2:]
    halves = torch.arange(16, dtype=torch.float64).repeat_interleave(2)
    sides = (torch.arange(1, n + 1, dtype=torch.float64)[:, None] / (n + 1e-6) for n in (h, w))
    rows, columns = (side * 2 * np.pi / 10000 ** (halves / 16) for side in sides)
    rows, columns = (torch.where(torch.arange(32) % 2 == 0, x.sin(), x.cos()) for x in (rows, columns))
    waves = torch.cat([rows[:, None].expand(-1, w, -1), columns[None].expand(h, -1, -1)], dim=-1)
    positions = weights["pos_embeder.token_projection.weight"][:, :, 0, 0], weights["pos_embeder.token_projection.bias"]
    x = pixels.flatten(2).mT + F.linear(waves.flatten(0, 1), *positions)
    for name in (f"blocks.{n}" for n in range(depth)):
        x = x + weights[f"{name}.gamma1"] * tssa(f"{name}.attn", norm(f"{name}.norm1", x))
        x = x + weights[f"{name}.gamma2"] * mlp(name, norm(f"{name}.norm2", x))
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x], dim=1)
    for name in ("cls_attn_blocks.0", "cls_attn_blocks.1"):
        x = x + weights[f"{name}.gamma1"] * class_attention(f"{name}.attn", norm(f"{name}.norm1", x))
        normed = norm(f"{name}.norm2", x)
        x = normed if tokens_norm else torch.cat([normed[:, :1], x[:, 1:]], dim=1)
        x = x + torch.cat([weights[f"{name}.gamma2"] * mlp(name, x[:, :1]), x[:, 1:]], dim=1)
    return linear("head", norm("norm", x)[:, 0])


@pytest.mark.parametrize(
    ("made", "tokens_norm", "found"),
    [
        ({}, True, {}),  # the textbook itself, against the authors' numbers
        (dict(qkv_bias=False), True, dict(qkv_bias=False)),
        (dict(mlp_ratio=2), True, dict(mlp_ratio=2)),
        (dict(mlp_ratio=31 / 48), True, dict(mlp_ratio=31 / 48)),
        ({}, False, dict(tokens_norm=False)),
        (dict(qkv_bias=False, mlp_ratio=3), False, dict(qkv_bias=False, mlp_ratio=3, tokens_norm=False)),
    ],
)
def test_the_official_constructors_options(made, tokens_norm, found):
    """The file tells ``qkv_bias`` and ``mlp_ratio``; ``tokens_norm``, on which no weight depends, is given."""
    weights, ref = with_options(**made), REFERENCE["micro"]
    given = {} if tokens_norm else dict(tokens_norm=False)
    expected = textbook(weights, images(ref), tokens_norm)
    if not made and tokens_norm:
        assert_close(expected[:, :10], ref["logits_first10"])
    opened = as_checkpoint(weights, **given)
    options = {key: value for key, value in opened.model["backbone"].items() if key in ToST.__init__.__annotations__}
    assert options == {"arch": MICRO, "img_size": 224, "patch_size": 8, **found}
    assert ("tokens_norm = True" in opened.meta["assumed"]) == tokens_norm
    with torch.no_grad():
        assert_close(from_official(weights, img_size=32, **given)(images(ref)), expected)


def test_a_ratio_gives_the_hidden_width_back():
    assert int(392 * (8 / 392)) == 7  # in float64
    assert MLP(392, mlp_ratio_of(8, 392)).fc1.out_features == 8


def test_official_options_that_are_wrong():
    with pytest.raises(ValueError, match="tokens_norm must be True or False, got 'no'"):
        as_checkpoint(official(), tokens_norm="no")
    weights = with_options(qkv_bias=False)
    weights["blocks.0.attn.qkv.bias"] = torch.zeros(48)
    with pytest.raises(ValueError, match="does not fit its model: missing .*blocks.1.compress.proj.bias"):
        as_checkpoint(weights)
    with pytest.raises(ValueError, match="an MLP of width 48 has no hidden channel at a ratio of 0"):
        ToST(MICRO, 32, 8, mlp_ratio=0)


def test_layers_offer_what_is_defined():
    """R^c by TSSA's subspaces, no attention map, no code."""
    torch.manual_seed(0)
    model = get_model("tost_small_12", num_classes=5, arch=MICRO, img_size=32, patch_size=8).double()
    torch.nn.init.normal_(model.backbone.blocks[0].compress.proj.bias)
    block, pixels = model.backbone.blocks[0], torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert (block.lambd, block.returns_code, block.attention(torch.zeros(1, 4, 48))) == (None, False, None)
    assert set(block.taps()) == {"tap_in", "tap_w", "tap_pi", "tap_half", "tap_out", "tap_act"}
    assert set(defined_measures(model)) == {"rc_half", "rc_z", "rc_in", "rc_out", "snr_out", "r_out", "active"}
    with torch.no_grad(), capture(model) as seen, measure_layers(model) as measures:
        model(pixels)
    U = block.subspaces().U
    z = block.norm_compress(model.backbone.embedding(pixels))
    torch.testing.assert_close(seen["tap_w"][0], z @ U)
    expected = subspace_coding_rate(seen["tap_half"][0] @ U, 3, 0.01, True).mean().item()
    assert measures.means("rc_half")[0] == pytest.approx(expected, rel=1e-9)
    with pytest.raises(
        ValueError,
        match="ToST has no attention map: the map 'membership' of TSSA is groups x tokens, not tokens x tokens",
    ):
        cls_attention(model, pixels)
    with pytest.raises(ValueError, match="ToST has none of sparsity"), measure_layers(model, measures=["sparsity"]):
        pass


def test_memory_grows_with_the_number_of_tokens():
    """No tensor of N x N is made."""
    model, largest = ToST(MICRO, 64, 8), []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            largest.extend(
                value.numel() for value in (out if isinstance(out, tuple) else (out,)) if hasattr(value, "numel")
            )
            return out

    x = torch.randn(1, 4096, 48)
    with Watch(), torch.no_grad():
        model.blocks[0](x)
    assert max(largest) == 4 * x.numel()  # the MLP's hidden tokens


@pytest.mark.parametrize(("arch", "gamma"), [("tiny_12", 1.0), ("tiny_24", 1e-5)])
def test_weights_start_as_in_the_official_code(arch, gamma):
    torch.manual_seed(0)
    model = get_model(f"tost_{arch}", img_size=32)
    block = model.backbone.blocks[-1]
    for value in (block.compress.proj.weight, block.sparsify.fc1.weight, model.head.fc.weight):
        assert value.std().item() == pytest.approx(0.02, rel=0.03)
    for value in (block.gamma_compress, block.gamma_sparsify, model.backbone.class_blocks[0].gamma_mlp):
        assert (value == gamma).all()
    assert (block.compress.temp == 1).all()
    assert not block.compress.proj.bias.any()


def test_depth_is_stochastic_in_the_layers_alone():
    model = ToST(MICRO, 32, 8, drop_path=0.999999)
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 32, 32)
    with capture(model, ("tap_out",)) as seen:
        model.train()(pixels)
    torch.testing.assert_close(seen["tap_out"][-1], model.embedding(pixels))  # every layer was dropped


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(patch_size=4), "patch_size of the convolutional stem must be 8 or 16, got 4"),
        (dict(img_size=36), "img_size 36 x 36 is not a whole number of patches of 8 x 8"),
        (dict(arch=dict(MICRO, num_heads=5)), "embed_dim 48 is not divisible by num_heads 5"),
        (dict(arch=dict(MICRO, embed_dim=30)), "embed_dim 30 is not divisible by 4"),
        (dict(drop_path=1.0), "drop_path must be a probability from 0 to below 1"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ToST(**{"arch": MICRO, "img_size": 32, "patch_size": 8, **arguments})


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 3, 30, 32), (3, 32, 32)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"expected images of shape|is not a whole number of patches"):
        ToST(MICRO, 32, 8)(torch.zeros(shape))
