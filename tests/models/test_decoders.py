"""Mask decoders against the numbers of the authors' code, float64, 1e-9 relative (tests/data/README.md)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crate_mm import from_official
from crate_mm.analysis.gather import measure_layers
from crate_mm.analysis.taps import capture, find_layers
from crate_mm.checkpoints import as_checkpoint
from crate_mm.checkpoints.fit import load_strict
from crate_mm.models import DEPICTCA, DEPICTSA, CBTDecoder, TokenLayout
from crate_mm.models.decoders.base import class_maps
from crate_mm.models.layers import CBSA, MSCA, MSSA, CrossBlock
from crate_mm.registry import HEADS, MODELS
from crate_mm.testing import check_layer
from tests.official import assert_close, assert_gradients, losses_by_step, official_state_dict, reference

REFERENCE = reference("depict")
DECODERS = {"depict_sa_micro": DEPICTSA, "depict_ca_micro": DEPICTCA, "cbt_decoder_micro": CBTDecoder}
WIDTHS = {"tiny": 192, "small": 384, "base": 768, "large": 1024}


def normal(seed, *shape):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


@pytest.fixture(params=DECODERS)
def case(request):
    """The reference entry, our decoder with its weights, patches, grid and labels."""
    ref, cls = REFERENCE[request.param], DECODERS[request.param]
    config, (h, w) = ref["config"], ref["config"]["grid_height_width"]
    decoder = cls.from_official(official_state_dict(ref["generated_shapes"]), num_heads=config["n_heads"])
    size = ref["batch_size"], h * config["patch_size"], w * config["patch_size"]
    labels = torch.from_numpy(np.random.RandomState(9).randint(0, config["n_cls"], size))
    labels[:, : config["ignored_rows"]] = 255
    return ref, decoder, normal(7, ref["batch_size"], h * w, config["d_model"]), (h, w), labels


def upsampled(decoder, patches, grid, labels):
    return F.interpolate(decoder(patches, grid), labels.shape[-2:], mode="bilinear")


@torch.no_grad()
def test_masks(case):
    ref, decoder, patches, grid, labels = case
    masks = decoder(patches, grid)
    assert masks.shape == (ref["batch_size"], ref["config"]["n_cls"], *grid)
    assert sum(p.numel() for p in decoder.parameters()) == ref["num_parameters"]
    assert_close(masks.flatten(2)[:, [0, -1], :10], ref["masks_first10_of_class0_and_last"])
    assert_close(masks.norm(), ref["masks_l2"])
    large = upsampled(decoder, patches, grid, labels)
    assert_close(large.norm(), ref["upsampled_l2"])
    assert_close(large[:, 0, 1, :10], ref["upsampled_first10_of_row1_class0"])
    assert large[0].argmax(0)[0].tolist() == ref["most_likely_class_image0_row0"]


def test_gradients_and_steps(case):
    ref, decoder, patches, grid, labels = case
    sgd = dict(ref["sgd"])
    decay = sgd.pop("weight_decay")
    groups = {True: [], False: []}
    for name, parameter in decoder.named_parameters():
        groups[parameter.ndim >= 2 and name != "class_tokens"].append(parameter)
    optimizer = torch.optim.SGD(
        [dict(params=groups[True], weight_decay=decay), dict(params=groups[False], weight_decay=0)], **sgd
    )
    patches.requires_grad_()

    def after_first():
        assert_gradients(decoder, ref, decoder.official.key_map)
        assert_close(patches.grad.norm(), ref["input_grad_l2"])

    def loss():
        return F.cross_entropy(upsampled(decoder, patches, grid, labels), labels, ignore_index=255)

    losses = losses_by_step(loss, optimizer, 4, after_first)
    assert_close(losses, ref["sgd_loss_by_step"])
    assert_close(losses[0], ref["loss"])


@torch.no_grad()
def test_tied_operator():
    """MSSA with tied output and a learned number, and the cross-attention, each alone."""
    ref = REFERENCE["mssa_with_tied_output"]
    config, weights = ref["config"], official_state_dict(ref["generated_shapes"])
    sizes = config["dim"], config["heads"], config["dim_head"]
    x, queries = (normal(seed, 2, config[key], config["dim"]) for seed, key in ((5, "tokens"), (6, "queries")))
    operators = [kind(*sizes, tied=True, scaled=True).double() for kind in (MSSA, MSCA)]
    for operator in operators:
        operator.load_state_dict({"proj.weight": weights["proj"], "step_size": weights["step_size"]})
    out = operators[0](x)
    assert_close(out[:, 0, :10], ref["self_first10_of_token0"])
    assert_close(out.norm(), ref["self_l2"])
    cross = operators[1](torch.cat([x, queries], 1), TokenLayout(0, 1, config["tokens"]))
    assert_close(cross[:, 0, :10], ref["cross_first10_of_query0"])
    assert_close(cross.norm(), ref["cross_l2"])


@pytest.mark.parametrize("name", REFERENCE["decoder_parameter_counts_3_layers_3_heads_of_100"])
def test_parameter_counts_of_the_published_sizes(name):
    kind = next(cls for key, cls in DECODERS.items() if name.startswith(key.removesuffix("_micro")))
    with torch.device("meta"):
        decoder = HEADS.build(dict(type=kind.__name__, embed_dim=WIDTHS[name.split("_")[-2]], num_classes=150))
    count = sum(p.numel() for p in decoder.parameters())
    assert count == REFERENCE["decoder_parameter_counts_3_layers_3_heads_of_100"][name]


@pytest.mark.parametrize("kind", DECODERS.values())
def test_initialization_is_the_authors(kind):
    torch.manual_seed(0)
    decoder = kind(256, 40)
    assert decoder.class_tokens.std().item() == pytest.approx(0.02, rel=0.05)
    std = 0.02 if kind is CBTDecoder else 256**-0.5
    for layer in find_layers(decoder).values():
        assert layer.compress.proj.weight.std().item() == pytest.approx(std, rel=0.05)
    if kind is CBTDecoder:
        assert not decoder.blocks[0].compress.out.bias.any()


def test_from_official_copies_and_refuses():
    shapes = REFERENCE["depict_sa_micro"]["generated_shapes"]
    weights = official_state_dict(shapes)
    decoder = DEPICTSA.from_official(weights, num_heads=2, depth=2, embed_dim=24, num_classes=7)
    with torch.no_grad():
        decoder.class_tokens.zero_()
    assert weights["cls_emb"].any()
    for sizes, sentence in (
        (dict(num_heads=3), "it has num_heads 2, but num_heads is 3"),
        (dict(patch_size=8), "do not accept patch_size"),
    ):
        with pytest.raises(ValueError, match=sentence):
            DEPICTSA.from_official(weights, **sizes)
    with pytest.raises(ValueError, match=r"not the weights of CBT's decoder: net.layers.0.fn.proj.weight is missing"):
        CBTDecoder.from_official(weights)
    for change, sentence in (
        (lambda w: w.pop("mask_norm.bias"), "missing .*mask_norm.bias"),
        (lambda w: w.update({"net.layers.0.fn.proj": torch.zeros(150, 24)}), "150 rows, expected a multiple of 100"),
        (
            lambda w: w.update({"extra": torch.zeros(1)}),
            "'extra' is not a parameter of DEPICT's self-attention decoder",
        ),
        (lambda w: w.update({"decoder_norm.bias": torch.zeros(3)}), r"norm.bias has shape \(3,\), expected \(24,\)"),
    ):
        changed = dict(weights)
        change(changed)
        with pytest.raises(ValueError, match=sentence):
            DEPICTSA.from_official(changed)


@pytest.mark.parametrize("kind", DECODERS.values())
def test_bad_input_is_refused(kind):
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        kind(24, 0)
    decoder = kind(24, 5)
    with pytest.raises(ValueError, match=r"takes patches of shape \(B, 6, 24\) for a grid of 2 x 3, got \(1, 7, 24\)"):
        decoder(torch.zeros(1, 7, 24), (2, 3))


@pytest.mark.parametrize("kind", DECODERS.values())
def test_layers_are_measured_and_their_maps_read(kind):
    """A rectangular grid; the class tokens' maps are those of a plain computation."""
    torch.manual_seed(0)
    decoder, layout = kind(24, 5, depth=2, num_heads=2, head_dim=4).double().eval(), TokenLayout(0, 2, 3)
    patches = torch.randn(3, 6, 24).double()
    with torch.no_grad(), measure_layers(decoder) as measures, capture(decoder, ("tap_w",)) as tensors:
        decoder(patches, (2, 3))
    layers = list(find_layers(decoder).values())
    assert len(layers) == (5 if kind is DEPICTCA else 2)
    rates = measures.means("rc_half")
    assert len(rates) == len(layers)
    assert min(rates) > 0
    for layer, w in zip(layers, tensors["tap_w"]):
        if not isinstance(layer, CrossBlock):
            check_layer(layer, 24, layout)
        K = layer.compress.num_heads
        found = class_maps(layer, w, layout)
        if w.shape[1] == 6:  # patches alone
            assert found is None
            continue
        name, maps = found
        assert maps.shape == (3, K, 5, 2, 3)
        heads = w.unflatten(-1, (K, -1)).transpose(1, 2)
        columns = heads[:, :, :6] if isinstance(layer, CrossBlock) else heads
        expected = (heads[:, :, 6:] @ columns.mT / heads.shape[-1] ** 0.5).softmax(-1)[..., :6]
        if isinstance(layer.compress, CBSA):
            q = layer.compress.representatives(w, layout).unflatten(-1, (K, -1)).transpose(1, 2)
            A = (q @ heads.mT / heads.shape[-1] ** 0.5).softmax(-1)
            expected = A[..., 6:].mT @ A[..., :6]
        torch.testing.assert_close(maps.flatten(-2), expected)
        assert name == ("similarity" if isinstance(layer.compress, CBSA) else "attention")


@torch.no_grad()
def test_cross_layer_leaves_patches_and_does_not_normalize_queries():
    torch.manual_seed(0)
    layer = CrossBlock(8, MSCA(8, 2, 3, tied=True, scaled=True)).double()
    layout, z = TokenLayout(0, 2, 3), torch.randn(2, 10, 8).double()
    with capture(layer, ("tap_w", "tap_half")) as tensors:
        out = layer(z, layout)
    x, e, U = layer.norm_compress(z[:, :6]), z[:, 6:], layer.subspaces().U
    assert torch.equal(out[:, :6], z[:, :6])
    torch.testing.assert_close(tensors["tap_w"][0], torch.cat([x, e], 1) @ U)
    heads = []
    for U_k in U.split(3, 1):
        heads.append(((e @ U_k) @ (x @ U_k).mT / 3**0.5).softmax(-1) @ (x @ U_k))
    expected = e + layer.compress.step_size * torch.cat(heads, -1) @ U.mT
    torch.testing.assert_close(out[:, 6:], expected)
    assert torch.equal(tensors["tap_half"][0], out)


@pytest.mark.parametrize("kind", DECODERS.values())
def test_samples_are_apart_and_the_grid_has_its_rows(kind):
    """Masks of an image do not depend on the others; patches are row by row."""
    torch.manual_seed(0)
    decoder, patches = kind(24, 5, depth=1).double().eval(), torch.randn(2, 6, 24).double()
    masks = decoder(patches, (2, 3))
    torch.testing.assert_close(masks[1:], decoder(patches[1:], (2, 3)))
    assert masks.shape == (2, 5, 2, 3)
    if kind is not CBTDecoder:  # without positions, patches move as they please
        order = [3, 4, 5, 0, 1, 2]
        torch.testing.assert_close(decoder(patches[:, order], (2, 3)), masks.flip(2))


def segmenter_weights(name, d=24, depth=2, patch=8, side=32, classes=7):
    """A whole model as the authors' code saves it, with the decoder of a reference case."""
    shapes = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, 1 + (side // patch) ** 2, d),
        "patch_embed.proj.weight": (d, 3, patch, patch),
        "patch_embed.proj.bias": (d,),
        **{f"norm.{p}": (d,) for p in ("weight", "bias")},
        "head.weight": (1000, d),
        "head.bias": (1000,),
    }
    for layer in range(depth):
        for part, (rows, columns) in {
            "attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)
        }.items():  # fmt: skip
            shapes |= {f"blocks.{layer}.{part}.weight": (rows, columns), f"blocks.{layer}.{part}.bias": (rows,)}
        shapes |= {f"blocks.{layer}.norm{i}.{p}": (d,) for i in (1, 2) for p in ("weight", "bias")}
    weights = {f"encoder.{key}": value for key, value in official_state_dict(shapes).items()}
    decoder = official_state_dict(REFERENCE[name]["generated_shapes"])
    return weights | {f"decoder.{key}": value for key, value in decoder.items()}


def segmenter_tokens(w, images, heads, patch=8, eps=1e-5):
    """The tokens of the authors' ViT, by its formulas."""
    w = {key.removeprefix("encoder."): value for key, value in w.items()}
    d = w["cls_token"].shape[-1]

    def norm(x, name):
        return F.layer_norm(x, (d,), w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], patch).flatten(2).mT
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
    for layer in range(2):
        name = f"blocks.{layer}"
        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, -1)
        )
        y = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(y, f"{name}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
    return norm(x, "norm")


@torch.no_grad()
@pytest.mark.parametrize("name", ["depict_sa_micro", "depict_ca_micro"])
def test_whole_models_of_the_authors_are_translated(name):
    weights, images = segmenter_weights(name), normal(3, 2, 3, 32, 32)
    model = from_official({"model": weights, "epoch": 63, "optimizer": {}}, num_heads=4)
    assert (model.window, model.num_classes, model.patch_size) == ((32, 32), 7, (8, 8))
    assert model.data_preprocessor.mean.flatten().tolist() == [127.5] * 3
    own = {key.removeprefix("decoder."): value for key, value in weights.items() if key.startswith("decoder.")}
    masks = DECODERS[name].from_official(own)(segmenter_tokens(weights, images, 4)[:, 1:], (4, 4))
    expected = F.interpolate(masks, (32, 32), mode="bilinear")
    torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="has no ViT of width 24 and depth 2: give num_heads"):
        from_official({"model": weights})
    with pytest.raises(ValueError, match=r"'encoder.dist_token' is not a parameter of DEPICT's"):
        from_official({"model": {**weights, "encoder.dist_token": torch.zeros(1, 1, 24)}}, num_heads=4)


@pytest.mark.parametrize(("width", "depth", "heads"), [(192, 12, 3), (1024, 24, 16)])
def test_published_whole_models_need_no_argument(width, depth, heads):
    """Names and shapes of CBT's model on a ViT, without memory; the number of heads is the published one."""
    shapes = {key: list(value.shape) for key, value in segmenter_weights("cbt_decoder_micro", d=20).items()}
    weights = {}
    for key, shape in shapes.items():
        for n in range(depth if ".blocks.0." in key else 3 if ".layers.0." in key else 1):
            name = key.replace(".blocks.0.", f".blocks.{n}.").replace(".layers.0.", f".layers.{n}.")
            sizes = [{20: width, 60: 3 * width, 80: 4 * width}.get(size, size) for size in shape]
            weights[name] = torch.empty(sizes, device="meta")
    opened = as_checkpoint({"model": weights})
    assert opened.model["backbone"]["arch"] == dict(embed_dim=width, depth=depth, num_heads=heads)
    head = dict(type="CBTDecoder", embed_dim=width, num_classes=150, depth=3, num_heads=3, head_dim=100)
    assert opened.model["head"] == head
    with torch.device("meta"):
        load_strict(MODELS.build(opened.model), opened)
