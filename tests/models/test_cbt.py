"""CBSA and CBT against the numbers of the authors' code, float64, 1e-9 relative (tests/data/README.md)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crate_mm import from_official, get_model
from crate_mm.checkpoints import CheckpointError, as_checkpoint
from crate_mm.models import CBT, CBT_ARCHS, CRATE, TokenLayout
from crate_mm.models.families.cbt import KEY_MAP
from crate_mm.models.layers import CBSA, AgentAttention, SoftmaxAttention
from crate_mm.models.translate import rename
from crate_mm.registry import MODELS, OPTIMIZERS
from crate_mm.testing import check_backbone, check_layer
from tests.official import assert_close, assert_gradients, losses_by_step, official_state_dict, reference
from tests.official import reference_images as images

REFERENCE = reference("cbsa")
CASES = [name for name in REFERENCE if name.startswith("micro")]
COUNTS = REFERENCE["parameter_counts_1000_classes_224_patch16"]
THEIR_NAMES = {"Ours": None, "CRATE": dict(type="MSSA"), "ToST": dict(type="TSSA", proj_bias=False)}
MICRO = dict(embed_dim=24, depth=2, num_heads=3)


def official(name):
    """A file as the authors' code writes it: DataParallel's prefix, BatchNorm's statistics as they start."""
    weights = official_state_dict(REFERENCE[name]["generated_shapes"])
    for key in [key for key in weights if key.endswith(".1.weight") and "proj" in key]:
        stem = key.removesuffix("weight")
        weights |= {
            f"{stem}running_mean": torch.zeros_like(weights[key]),
            f"{stem}num_batches_tracked": torch.tensor(0),
        }
        weights[f"{stem}running_var"] = torch.ones_like(weights[key])
    more = {"epoch": 150, "arch": "Ours_tiny", "best_acc1": torch.tensor(63.2), "optimizer": {}, "scheduler": {}}
    return {"state_dict": {f"module.{key}": value for key, value in weights.items()}, **more}


@pytest.fixture(params=CASES)
def case(request):
    """The reference entry, our model with its weights, its images and labels."""
    ref = REFERENCE[request.param]
    model = from_official(official(request.param), num_heads=ref["config"]["heads"])
    model.label_smoothing = 0.1
    return ref, model, images(ref), torch.tensor(ref["labels"])


@torch.no_grad()
def test_logits_and_layers(case):
    ref, model, pixels, _ = case
    seen, codes = [], []
    for block in model.backbone.blocks:
        block.compress.register_forward_hook(lambda _, inputs, out: seen.append(out.norm()))
        block.tap_out.register_forward_hook(lambda _, inputs, z: codes.append([(z != 0).double().mean(), z.norm()]))
    logits = model(pixels)
    assert sum(p.numel() for p in model.parameters()) == ref["num_parameters"]
    assert_close(logits[:, :10], ref["logits_first10"])
    assert_close(logits.norm(), ref["logits_l2"])
    assert_close(seen, ref["compress_output_l2_per_layer"])
    assert_close(codes, ref["nonzero_fraction_and_l2_after_ista_per_layer"])


@pytest.mark.parametrize("name", ["lion", "adamw"])
def test_gradients_statistics_and_steps(case, name):
    ref, model, pixels, labels = case
    kind = {"lion": "Lion", "adamw": "AdamW"}[name]
    optimizer = OPTIMIZERS.build(dict(type=kind, params=model.parameters(), **ref[name]))

    def after_first():
        assert_gradients(model, ref, KEY_MAP)
        statistics = rename(ref["running_stats_l2_after_one_forward"], KEY_MAP, "the official code")[0]
        assert_close([model.state_dict()[key].norm() for key in statistics], list(statistics.values()))

    losses = losses_by_step(
        lambda: model.train()(pixels, labels, mode="loss")["loss"], optimizer, steps=4, after_first=after_first
    )
    assert_close(losses[0], ref["train_loss"])
    assert_close(losses, ref[f"{name}_all_decayed_loss_by_step"])
    if name == "lion":
        with torch.no_grad():
            assert_close(model.eval()(pixels)[:, :10], ref["eval_logits_first10_after_lion_steps"])


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in CASES if "cbsa_alone_first10" in REFERENCE[name]])
def test_the_operator_alone(name):
    """With both poolings, its representatives, and its similarity."""
    ref = REFERENCE[name]
    config = ref["config"]
    cbsa = from_official(official(name), num_heads=config["heads"]).backbone.blocks[0].compress
    side = config["image_size"] // config["patch_size"]
    layout = TokenLayout(1, side, side)
    x = torch.from_numpy(np.random.RandomState(5).standard_normal((2, 1 + side**2, config["dim"])))
    q, maps = cbsa.representatives(cbsa.proj(x), layout), cbsa.maps(cbsa.proj(x), layout)
    assert_close(cbsa(x, layout)[:, 0, :10], ref["cbsa_alone_first10"])
    assert_close(cbsa(x).norm(), ref["cbsa_alone_l2"])  # the grid is square: it needs no layout
    assert_close(q[0, [0, 63], :10], ref["cbsa_alone_representatives_first10_of_number_0_and_63"])
    assert_close(q.norm(), ref["cbsa_alone_representatives_l2"])
    assert maps["attention"][1:] == ("representatives", "tokens")
    similarity = maps["similarity"].values
    assert_close(similarity[0, 0, 0, :10], ref["cbsa_alone_similarity_image0_head0_token0_first10"])
    assert_close(similarity.norm(), ref["cbsa_alone_similarity_l2"])
    cbsa.shifted = False
    assert_close(cbsa(x, layout)[:, 0, :10], ref["cbsa_alone_if_cls_were_left_out_of_the_pool_first10"])
    assert_close(cbsa(x, layout).norm(), ref["cbsa_alone_if_cls_were_left_out_of_the_pool_l2"])


@pytest.mark.parametrize(("prefix", "rows", "columns"), [(0, 3, 5), (1, 9, 4), (2, 16, 8)])
def test_representatives_are_averages_of_parts_of_any_grid(prefix, rows, columns):
    cbsa, layout = CBSA(24, 3, side=4, shifted=False).double(), TokenLayout(prefix, rows, columns)
    w = torch.randn(2, prefix + rows * columns, 24).double()
    parts = F.adaptive_avg_pool2d(w[:, prefix:].mT.unflatten(2, (rows, columns)), 4)
    torch.testing.assert_close(cbsa.representatives(w, layout), parts.flatten(2).mT, rtol=1e-12, atol=1e-12)


ADAPTATION = REFERENCE["vit_adaptation_operator"]


def test_the_operator_of_the_vit_adaptation():
    """And softmax attention with the same weights; gradients of the mean square of the output."""
    config = ADAPTATION["config"]
    weights = official_state_dict(ADAPTATION["generated_shapes"])
    shape = config["batch"], 1 + config["grid"] ** 2, config["dim"]
    x = torch.from_numpy(np.random.RandomState(5).standard_normal(shape)).requires_grad_()
    agent, softmax = (kind(config["dim"], config["heads"]).double() for kind in (AgentAttention, SoftmaxAttention))
    for operator in (agent, softmax):
        operator.load_state_dict({name.replace("proj.", "out."): value for name, value in weights.items()})
    output = agent(x)
    assert_close(output[:, 0, :10].detach(), ADAPTATION["output_first10_of_token0"])
    assert_close(output.norm().detach(), ADAPTATION["output_l2"])
    assert_close(softmax(x)[:, 0, :10].detach(), ADAPTATION["softmax_attention_first10_of_token0"])
    loss = output.square().mean()
    assert_close(loss.item(), ADAPTATION["mean_square"])
    loss.backward()
    norms = {name.replace("out.", "proj."): p.grad.norm().item() for name, p in agent.named_parameters()}
    assert_close([norms[name] for name in weights], [ADAPTATION["grad_l2_by_parameter"][name] for name in weights])
    assert_close(np.linalg.norm(list(norms.values())), ADAPTATION["grad_l2_total"])
    assert_close(x.grad.norm(), ADAPTATION["input_grad_l2"])
    attention = agent.maps(x)["attention"].values
    assert_close(attention.sum(-1).detach(), torch.ones(attention.shape[:3]))
    v = agent.qkv(x).chunk(3, -1)[2].unflatten(-1, (config["heads"], -1)).transpose(1, 2)
    assert_close(agent.out((attention @ v).transpose(1, 2).flatten(2)).detach(), output.detach())


def test_tokens_without_a_square_grid_need_a_layout():
    with pytest.raises(ValueError, match="CBSA needs the layout of its tokens: 7 are no square grid of patches"):
        CBSA(24, 3)(torch.randn(1, 7, 24))
    with pytest.raises(ValueError, match="24 is not divisible by num_heads 5"):
        CBSA(24, 5)


@pytest.mark.parametrize("shifted", [True, False])
def test_contracts(shifted):
    backbone = CBT(MICRO, (16, 24), 8, compress=dict(type="CBSA", side=2, shifted=shifted))
    check_layer(backbone.layers[0], 24)
    check_backbone(backbone)
    for kind in ("CBSA", "AgentAttention"):
        check_backbone(CRATE(MICRO, 16, 4, compress=dict(type=kind, shifted=shifted)))


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    kind, arch = name.split("_")
    compress = THEIR_NAMES[kind]
    with torch.device("meta"):
        built = get_model(f"cbt_{arch}", **({"compress": compress} if compress else {}))
    assert sum(p.numel() for p in built.parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", CASES)
def test_what_a_file_tells(name):
    """All but MSSA's heads, and they are those of the published sizes."""
    ref = REFERENCE[name]
    config, contents = ref["config"], official(name)
    opened = as_checkpoint(contents, num_heads=config["heads"], ista_lambda=0.2)
    backbone = opened.model["backbone"]
    assert (backbone["img_size"], backbone["patch_size"]) == (config["image_size"], config["patch_size"])
    assert backbone["arch"] == dict(embed_dim=config["dim"], depth=config["depth"], num_heads=config["heads"])
    assert MODELS.build(opened.model).backbone.blocks[0].sparsify.lambd == 0.2
    if config["attention"] == "MSSA":
        with pytest.raises(CheckpointError, match="the CBSA code has no model of width 24 and depth 2: give num_heads"):
            from_official(contents)
    else:
        assert as_checkpoint(contents).model["backbone"]["arch"] == backbone["arch"]
        with pytest.raises(ValueError, match=f"it has {config['heads']} heads, but num_heads is 8"):
            as_checkpoint(contents, num_heads=8)


@pytest.mark.parametrize("arch", CBT_ARCHS)
def test_published_sizes_are_recognized(arch):
    with torch.device("meta"):
        model = get_model(f"cbt_{arch}", compress=dict(type="MSSA"))
    theirs = {}
    for key in model.state_dict():
        renamed = key
        for old, new in (
            ("backbone.embedding.stem", "to_patch_embedding.proj"),
            ("backbone.embedding.pos_embed", "pos_embedding"),
            ("backbone.embedding.", ""),
            ("backbone.blocks", "transformer.layers"),
            ("norm_compress", "0.norm"),
            ("norm_sparsify", "1.norm"),
            ("compress.proj", "0.fn.qkv"),
            ("compress.out", "0.fn.to_out"),
            ("sparsify.dictionary", "1.fn.weight"),
            ("head.norm", "mlp_head.0"),
            ("head.fc", "mlp_head.1"),
        ):
            renamed = renamed.replace(old, new)
        theirs[renamed] = model.state_dict()[key]
    backbone = as_checkpoint(theirs).model["backbone"]
    assert backbone == dict(type="CBT", arch=arch, img_size=224, patch_size=16, compress=dict(type="MSSA"))
