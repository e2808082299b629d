"""CRATE-MAE against the numbers of its authors' code, float64, 1e-9 relative (tests/data/README.md)."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper

from crate_mm.analysis.attention import cls_attention
from crate_mm.analysis.measures import nonzero_fraction
from crate_mm.analysis.taps import capture
from crate_mm.checkpoints import CheckpointError, as_checkpoint, open_checkpoint
from crate_mm.checkpoints.fit import load_strict
from crate_mm.engine import load_config
from crate_mm.models import ARCHS, CRATEMAE, MaskedAutoencoder
from crate_mm.models.families.crate_mae import KEY_MAP, UNUSED
from crate_mm.models.layers import resize_table, sincos_table
from crate_mm.models.translate import TranslationError, translate
from crate_mm.registry import MODELS
from tests.official import assert_close as assert_close_in_official
from tests.official import assert_gradients, losses_by_step, official_state_dict, reference
from tests.official import reference_images as images_of

REFERENCE = reference("mae")
NAMES = ["micro", pytest.param("base", marks=pytest.mark.slow)]
DECAY = load_config("crate_mae_base_in1k").optim_wrapper.paramwise_cfg.to_dict()
assert_close = partial(assert_close_in_official, atol=1e-15)  # some numbers are sines of whole periods


def translated(name, **given):
    ref = REFERENCE[name]
    config = ref["config"]
    given = {"img_size": config["image_size"], "norm_pix_loss": config["norm_pix_loss"], **given}
    return translate(
        CRATEMAE.official, official_state_dict(ref["generated_shapes"]), num_heads=config["heads"], **given
    )


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    """The reference entry, our model with its weights, its images and masking noise."""
    ref, found = REFERENCE[request.param], translated(request.param)
    model = MODELS.build(found.model).double().eval()
    model.load_state_dict(found.weights)
    patches = (ref["config"]["image_size"] // ref["config"]["patch_size"]) ** 2
    noise = np.random.RandomState(ref["noise_seed"]).rand(ref["batch_size"], patches)
    return ref, model, images_of(ref), torch.from_numpy(noise)


def test_the_model_is_the_references(case):
    ref, model, *_ = case
    config, encoder = ref["config"], model.backbone
    assert (len(encoder.blocks), len(model.decoder.blocks)) == (config["depth"], config["decoder_depth"])
    assert {(b.sparsify.step_size, b.sparsify.lambd) for b in encoder.blocks} == {(config["eta"], config["lambda"])}
    assert {b.compress.num_heads for b in model.decoder.blocks} == {config["decoder_heads"]}
    ours = sum(p.numel() for p in model.parameters())
    d = config["dim"]
    assert (ours, ours + d * d + d) == (ref["num_parameters_used"], ref["num_parameters_trainable"])


@pytest.mark.parametrize("case", ["micro"], indirect=True)
def test_targets_and_masks(case):
    ref, model, images, noise = case
    patches = model.patchify(images)
    assert_close(patches[0, 1, :10], ref["target_image0_patch1_first10"])
    assert_close(model.targets(images)[0, 1, :10], ref["target_normalised_image0_patch1_first10"])
    assert torch.equal(model.unpatchify(patches), images)
    assert noise.argsort(dim=1)[:, : model.num_visible].tolist() == ref["ids_keep"]
    mask = model.mask_of(noise)
    assert mask.sum(dim=1).tolist() == [ref["num_masked_per_image"]] * ref["batch_size"]
    assert [(~row).nonzero().flatten().tolist() for row in mask] == [sorted(row) for row in ref["ids_keep"]]


def test_position_table(case):
    ref, model, *_ = case
    side, theirs = ref["config"]["image_size"] // ref["config"]["patch_size"], ref["pos_table"]
    fresh = CRATEMAE(model.backbone.arch._asdict(), model.backbone.img_size, model.backbone.patch_size).double()
    for table in (sincos_table((side, side), ref["config"]["dim"], torch.float64), fresh.embedding.pos_table):
        assert not table[:, 0].any()
        assert_close(table[0, 2, :10], theirs["row2_first10"])
        assert_close(table[0, -1, :10], theirs["last_row_first10"])
        assert_close(table.norm(), theirs["l2"])


@torch.no_grad()
def test_forward(case):
    ref, model, images, noise = case
    outputs = []
    hooks = [block.register_forward_hook(lambda *a: outputs.append(a[2].norm())) for block in model.decoder.blocks]
    with capture(model, ("tap_code",)) as seen:
        pred = model(images, noise=noise)
    for hook in hooks:
        hook.remove()
    mask = model.mask_of(noise)
    assert_close(pred[:, 0, :10], ref["pred_first10"])
    assert_close(pred.norm(), ref["pred_l2"])
    assert_close(pred[mask].norm(), ref["pred_masked_l2"])
    assert_close(outputs, ref["decoder_layer_output_l2"])
    sparsity = [nonzero_fraction(code).mean() for code in seen["tap_code"]]
    assert_close(sparsity, ref["nonzero_fraction_after_ista_per_encoder_layer"])
    latent = model.backbone(images, mask, model.mask_token)
    assert_close(latent[:, 0, :10], ref["latent_first10"])
    assert_close(latent.norm(), ref["latent_l2"])


# NumPy's powers of float32 differ by a bit or two from machine to machine.
AS_THE_REFERENCE = np._core._multiarray_umath.__cpu_features__.get("AVX512_SKX", False)


def official_float32_table(grid, d):
    """The position table of float32 as the official code computes it, in float32 and by NumPy."""
    w = np.arange(d // 4, dtype=np.float32)
    w /= d / 4
    w = (1.0 / 10000**w).astype(np.float32)
    columns, rows = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in reversed(grid)))
    angles = [np.outer(side.reshape(-1), w) for side in (columns, rows)]
    patches = np.concatenate([part for x in angles for part in (np.sin(x), np.cos(x))], axis=1)
    return torch.from_numpy(np.concatenate([np.zeros((1, d)), patches])[None])


@pytest.mark.parametrize("case", ["micro"], indirect=True)
@torch.no_grad()
def test_losses(case):
    ref, model, images, noise = case
    assert_close(model(images, noise=noise, mode="loss")["loss"], ref["loss"])
    other = copy.copy(model)
    other.norm_pix_loss = not model.norm_pix_loss
    assert_close(other(images, noise=noise, mode="loss")["loss"], ref["loss_other_norm_pix"])
    table = model.backbone.embedding.pos_table
    exact = table.clone()
    table.copy_(official_float32_table(model.backbone.embedding.grid_size, table.shape[2]))
    rounded = model(images, noise=noise, mode="loss")["loss"].item()
    assert rounded == pytest.approx(ref["loss_with_float32_pos_table"], rel=1e-9 if AS_THE_REFERENCE else 5e-9)
    table.copy_(exact)


@pytest.mark.parametrize("case", ["micro"], indirect=True)
@torch.no_grad()
def test_the_whole_image(case):
    ref, model, images, _ = case
    theirs = ref["unmasked"]
    tokens = model.backbone(images)
    assert_close(tokens[:, 0, :10], theirs["cls_first10"])
    assert_close(tokens.norm(), theirs["tokens_l2"])
    assert torch.equal(model(images, mode="features"), tokens[:, 0])
    last = len(model.backbone.blocks) - 1
    attention = cls_attention(model, images, [last])[last]
    assert_close(attention[:, 0, :10], theirs["cls_attention_last_layer_head0_first10"])
    if "unmasked_other_size" in ref:
        theirs = ref["unmasked_other_size"]
        tokens = model.backbone(images_of(ref, (theirs["image_size"],) * 2))
        assert_close(tokens[:, 0, :10], theirs["cls_first10"])
        assert_close(tokens.norm(), theirs["tokens_l2"])


def test_gradients_and_adamw_steps(case):
    """The decay of each parameter is what the config of the pretraining gives it; of the large model, one step."""
    ref, model, images, noise = case
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for rule, decay in (("adamw_loss_by_step", DECAY), ("adamw_all_decayed_loss_by_step", None)):
        expected = ref.get(rule, [])[: None if ref is REFERENCE["micro"] else 2]
        wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", **ref["adamw"]), paramwise_cfg=decay)
        losses = losses_by_step(
            lambda: model(images, noise=noise, mode="loss")["loss"],
            build_optim_wrapper(model, wrapper).optimizer,
            len(expected),
            lambda: assert_gradients(model, ref, KEY_MAP, UNUSED, atol=1e-15),
        )
        assert_close(losses, expected)
        model.load_state_dict(start)


@pytest.mark.parametrize("size", ARCHS)
def test_parameter_counts(size):
    """Those that the authors publish, 25.4 M and 44.6 M, count two position tables and the unused ``decoder_embed``."""
    counts = REFERENCE["parameter_counts_224_16"][size]
    with torch.device("meta"):
        model = MODELS.build(dict(type="MaskedAutoencoder", backbone=dict(type="CRATEMAE", arch=size)))
    d = model.backbone.embed_dim
    used = sum(p.numel() for p in model.parameters())
    assert (used, used + d * d + d) == (counts["used"], counts["trainable"])
    assert sum(p.numel() for p in model.backbone.parameters()) == counts["encoder"]
    tables = 2 * model.backbone.embedding.pos_table.numel()
    assert tables == counts["fixed_position_tables"]
    if size in ("small", "base"):
        assert round((counts["trainable"] + tables) / 1e6, 1) == {"small": 25.4, "base": 44.6}[size]


def test_initialisation_is_the_official_ones():
    torch.manual_seed(0)
    model = MaskedAutoencoder(
        dict(type="CRATEMAE", arch=dict(embed_dim=256, depth=1, num_heads=4), img_size=32, patch_size=8),
        decoder=dict(depth=1, num_heads=4),
    )
    block, decoder = model.backbone.blocks[0], model.decoder.blocks[0]
    xavier = [(block.compress.proj, 256, 256), (decoder.compress.out, 256, 256), (model.decoder.pred, 256, 192)]
    for layer, fan_in, fan_out in xavier:
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert layer.bias is None or not layer.bias.any()
    conv, bound = model.backbone.embedding.proj, (6 / (192 + 256)) ** 0.5
    assert 0.98 * bound < conv.weight.abs().max() <= bound
    assert 0.9 / 192**0.5 < conv.bias.abs().max() <= 1 / 192**0.5
    for token in (model.mask_token, model.backbone.embedding.cls_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.15)
    for dictionary in (block.sparsify.dictionary, decoder.dictionary):
        assert 0.98 * (6 / 256) ** 0.5 < dictionary.abs().max() <= (6 / 256) ** 0.5


def test_state_dict_keys_are_a_contract():
    arch = dict(embed_dim=24, depth=1, num_heads=3)
    model = MaskedAutoencoder(dict(type="CRATEMAE", arch=arch, img_size=16, patch_size=4))
    pairs = ["backbone.embedding.proj", "backbone.norm", "decoder.norm", "decoder.pred"]
    pairs += [f"backbone.blocks.0.{part}" for part in ("norm_compress", "compress.out", "norm_sparsify")]
    pairs += [f"decoder.blocks.0.{part}" for part in ("norm_synthesis", "norm_compress", "compress.out")]
    assert set(model.state_dict()) == {
        "mask_token",
        "backbone.embedding.cls_token",
        "backbone.embedding.pos_table",
        "backbone.blocks.0.compress.proj.weight",
        "backbone.blocks.0.sparsify.dictionary",
        "decoder.blocks.0.compress.proj.weight",
        "decoder.blocks.0.dictionary",
        *(f"{pair}.{kind}" for pair in pairs for kind in ("weight", "bias")),
    }


def test_the_column_comes_first_in_the_table_of_a_wide_image():
    table = sincos_table((2, 3), 8, torch.float64)[0, 1:].view(2, 3, 8)
    w = torch.tensor([1, 10000**-0.5], dtype=torch.float64)
    for row in range(2):
        for column in range(3):
            expected = torch.cat([(column * w).sin(), (column * w).cos(), (row * w).sin(), (row * w).cos()])
            torch.testing.assert_close(table[row, column], expected, rtol=1e-14, atol=1e-14)
    with pytest.raises(ValueError, match="an embed_dim divisible by 4, got 6"):
        sincos_table((2, 2), 6)


@pytest.mark.parametrize("new", [(7, 11), (2, 3), (4, 5)])
def test_a_resized_table_keeps_the_cls_token_and_the_axes(new):
    """Where a side keeps its length the other one alone is interpolated: rows and columns are not mixed up."""
    table = torch.zeros(1, 21, 4)
    table[0, 0] = 9
    table[0, 1:] = torch.arange(20.0)[:, None] // 5  # the row's number, on 4 x 5 patches
    resized = resize_table(table, (4, 5), new)
    assert resized.shape == (1, 1 + new[0] * new[1], 4)
    assert resized[0, 0].tolist() == [9] * 4
    grid = resized[0, 1:].view(*new, 4)
    assert torch.allclose(grid, grid[:, :1])
    assert (grid[1:, 0] > grid[:-1, 0]).all()


# The authors' files ---------------------------------------------------------------------------------------------------


def official_file(name="micro", dtype=torch.float32):
    """What a file of the authors holds as its weights: their tables too."""
    ref = REFERENCE[name]
    weights = {key: value.to(dtype) for key, value in official_state_dict(ref["generated_shapes"]).items()}
    side = ref["config"]["image_size"] // ref["config"]["patch_size"]
    table = sincos_table((side, side), ref["config"]["dim"], dtype)
    return {**weights, "pos_embed": table.clone(), "decoder_pos_embed": table.clone()}


def test_a_file_of_the_authors_opens(tmp_path):
    torch.save({"model": official_file(), "optimizer": {}, "epoch": 799, "scaler": {}}, tmp_path / "mae.pth")
    opened = open_checkpoint(tmp_path / "mae.pth", num_heads=3)
    notes = "\n".join(opened.notes)
    assert "weights that the model does not use: decoder_embed.bias, decoder_embed.weight, pos_embed" in notes
    assert "3 heads in the decoder, ista_step_size 0.1, ista_lambda 0.5, mask_ratio 0.75, norm_pix_loss False" in notes
    model = MODELS.build(opened.model)
    load_strict(model, opened)
    ref = REFERENCE["micro"]
    noise = torch.from_numpy(np.random.RandomState(1).rand(4, 16))
    loss = model(images_of(ref).float(), noise=noise, mode="loss")["loss"].item()
    assert loss == pytest.approx(ref["loss_other_norm_pix"], rel=1e-5)


def test_a_file_of_the_authors_converts(run_tool, tmp_path):
    torch.save({"model": official_file()}, tmp_path / "mae.pth")
    done = run_tool("convert_official", tmp_path / "mae.pth", tmp_path / "ours.pth", "--num-heads", 3)
    assert done.code == 0, done.output
    assert "32 x 32 images in patches of 8, MaskedAutoencoder" in done.last_line
    opened = open_checkpoint(tmp_path / "ours.pth")
    load_strict(MODELS.build(opened.model), opened)
    assert opened.meta["assumed"].startswith("square RGB images, 3 heads in the decoder")


def test_the_table_that_a_file_stores_is_the_one_that_the_encoder_adds():
    weights = official_file()
    weights["decoder_pos_embed"] += 1
    table = as_checkpoint({"model": weights}, num_heads=3).weights["backbone.embedding.pos_table"]
    assert torch.equal(table, weights["decoder_pos_embed"])


def test_what_is_given_is_in_the_model():
    given = dict(decoder_num_heads=6, ista_step_size=0.2, ista_lambda=0.1, mask_ratio=0.5, norm_pix_loss=True)
    found = translated("micro", **given)
    assert found.assumed == "RGB images"
    model = MODELS.build(found.model)
    block, decoder = model.backbone.blocks[0], model.decoder.blocks[0]
    assert (block.sparsify.step_size, block.sparsify.lambd, block.compress.num_heads) == (0.2, 0.1, 3)
    assert (decoder.compress.num_heads, model.num_visible, model.norm_pix_loss) == (6, 8, True)


def test_heads_are_taken_as_published_and_else_asked_for():
    with torch.device("meta"):
        shapes = REFERENCE["base"]["generated_shapes"]
        weights = {name: torch.empty(shape) for name, shape in shapes.items()}
        found = translate(CRATEMAE.official, weights)
    assert found.model["backbone"] == dict(type="CRATEMAE", arch="base", img_size=224, patch_size=16)
    assert found.model["decoder"] == dict(depth=12, num_heads=12)
    assert found.assumed.startswith("square RGB images, of 224 x 224 pixels, 12 heads, 12 heads in the decoder")
    opened = as_checkpoint({"model": official_file()})
    assert opened.model is None
    assert "give num_heads" in opened.unknown_reason
    found = translate(CRATEMAE.official, official_state_dict(REFERENCE["micro"]["generated_shapes"]))
    assert "give num_heads and img_size" in found.unknown_reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({"patch_embed.proj.weight": torch.zeros(48, 1, 8, 8)}), "patches have 1 channels"),
        (lambda w: [w.pop(k) for k in [*w] if k.startswith("decoder_blocks")], "it has no tensor of decoder_blocks"),
    ],
)
def test_weights_that_are_not_whole_are_refused(change, message):
    weights = official_file()
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        as_checkpoint({"model": weights}, num_heads=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(heads=2), "do not accept heads, only num_heads, decoder_num_heads"),
        (dict(decoder_num_heads=5), "decoder_num_heads 5 does not divide the width 48"),
        (dict(img_size=48), "img_size is 48, but the checkpoint's position embeddings are for 32"),
        (dict(img_size=30), "img_size 30 is not a whole number of patches of 8"),
    ],
)
def test_what_is_given_must_fit(given, message):
    with pytest.raises(TranslationError, match=message):
        translate(CRATEMAE.official, official_file(), num_heads=3, **given)


def test_other_weights_are_none_of_this_familys():
    assert translate(CRATEMAE.official, {"pos_embedding": torch.zeros(1)}, anything=1) is None
