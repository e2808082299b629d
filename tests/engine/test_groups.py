"""Which parameters decay under the recipes' rules, by name, and rules that would have no effect."""

import lion_pytorch
import pytest
import torch

from crate_mm.engine import CheckpointError
from crate_mm.engine.optim.param_groups import DefaultOptimWrapperConstructor
from crate_mm.models import ImageClassifier
from crate_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS
from tests.training import log_of, train

ARCH = dict(embed_dim=24, depth=2, num_heads=3)
LAYERS = ("backbone.blocks.0.", "backbone.blocks.1.")
# CRATE's parameters of more than one dimension.
MATRICES = {f"{layer}{name}" for layer in LAYERS for name in ("compress.proj.weight", "compress.out.weight")}
MATRICES |= {"backbone.embedding.proj.weight", "head.fc.weight"}
DICTIONARIES = {f"{layer}sparsify.dictionary" for layer in LAYERS}
TOKENS = {"backbone.embedding.cls_token", "backbone.embedding.pos_embed"}
# torchvision's ViT.
VIT_LAYERS = [f"backbone.encoder.layers.encoder_layer_{layer}." for layer in (0, 1)]
VIT_NAMES = ("self_attention.in_proj_weight", "self_attention.out_proj.weight", "mlp.0.weight", "mlp.3.weight")
VIT_MATRICES = {f"{layer}{name}" for layer in VIT_LAYERS for name in VIT_NAMES}
VIT_MATRICES |= {"backbone.conv_proj.weight", "head.fc.weight"}
VIT_TOKENS = {"backbone.class_token", "backbone.encoder.pos_embedding"}

MAE = dict(flat_decay_mult=0.0)
DEIT = dict(
    flat_decay_mult=0.0,
    custom_keys={key: dict(decay_mult=0.0) for key in ("cls_token", "class_token", "pos_embed")},
)
ALPHA = dict(
    flat_decay_mult=0.0, custom_keys={key: dict(decay_mult=0.0) for key in ("dictionary", "cls_token", "pos_embed")}
)


def model(kind="CRATE"):
    torch.manual_seed(0)
    return ImageClassifier(
        backbone=dict(type=kind, arch=ARCH, img_size=8, patch_size=4),
        head=dict(type="LinearHead", num_classes=5, norm=kind == "CRATE"),
    )


def build(net, rules, **optimizer):
    optimizer = {"type": "AdamW", "lr": 0.1, "weight_decay": 0.5, **optimizer}
    return DefaultOptimWrapperConstructor(dict(type="OptimWrapper", optimizer=optimizer), rules)(net)


def settings(net, wrapper):
    """Learning rate and weight decay of each parameter, by name."""
    of = {id(p): (g["lr"], g["weight_decay"]) for g in wrapper.optimizer.param_groups for p in g["params"]}
    return {name: of[id(p)] for name, p in net.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "rules", "expected"),
    [
        ("CRATE", MAE, MATRICES | DICTIONARIES | TOKENS),
        ("ViT", MAE, VIT_MATRICES | VIT_TOKENS),
        ("CRATE", {**DEIT, "custom_keys": {k: DEIT["custom_keys"][k] for k in ("cls_token", "pos_embed")}},
         MATRICES | DICTIONARIES),
        ("ViT", {**DEIT, "custom_keys": {k: DEIT["custom_keys"][k] for k in ("class_token", "pos_embed")}},
         VIT_MATRICES),
        ("CRATE", ALPHA, MATRICES),
    ],
    ids=["mae-crate", "mae-vit", "deit-crate", "deit-vit", "alpha-crate"],
)  # fmt: skip
def test_what_decays(kind, rules, expected):
    net = model(kind)
    wrapper = build(net, rules)
    found = settings(net, wrapper)
    assert {name for name, (_, decay) in found.items() if decay} == expected
    assert set(found.values()) == {(0.1, 0.5), (0.1, 0.0)}
    assert len(wrapper.optimizer.param_groups) == 2
    for group in wrapper.optimizer.param_groups:
        named = dict(net.named_parameters())
        assert all(named[name] is p for name, p in zip(group["names"], group["params"]))


def test_norms_and_biases_have_rules_of_their_own():
    net = model()
    found = settings(net, build(net, dict(norm_decay_mult=0.0, bias_decay_mult=0.5, bias_lr_mult=2.0)))
    for name, (lr, decay) in found.items():
        norm = "norm" in name
        bias = name.endswith("bias") and not norm
        assert (lr, decay) == (0.2 if bias else 0.1, 0.0 if norm else 0.25 if bias else 0.5), name


def test_keys_are_parts_of_names_and_the_longest_holds():
    """The trap: 'proj' is a part of two layers' names, and 'norm' of a patch's."""
    net = model()
    keys = {"proj": dict(decay_mult=0.0), "compress.proj": dict(decay_mult=2.0, lr_mult=0.5)}
    found = settings(net, build(net, dict(custom_keys=keys)))
    assert found["backbone.embedding.proj.weight"] == (0.1, 0.0)
    assert found["backbone.blocks.1.compress.proj.weight"] == (0.05, 1.0)
    assert found["backbone.blocks.1.compress.out.weight"] == (0.1, 0.5)
    assert build(net, dict(custom_keys=keys)).optimizer.param_groups[0]["lr"] == 0.1, "said of a run"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            dict(custom_keys=dict(dictionery=dict(decay_mult=0.0))),
            "custom_keys: no parameter's name contains 'dictionery': did you mean dictionary",
        ),
        (dict(custom_keys={"kernel": dict(decay_mult=0.0)}), r"no parameter's name contains 'kernel'.*head.fc.bias"),
        (
            dict(custom_keys={"dictionary": dict(decay_mult=0.0), "sparsify.dictionary": dict(decay_mult=1.0)}),
            "custom_keys: 'dictionary' has no effect: longer keys match all of its parameters",
        ),
        (dict(flat_decay=0.0), "paramwise_cfg has no 'flat_decay': did you mean flat_decay_mult"),
        (dict(decay_mult=0.0), "paramwise_cfg has no 'decay_mult': did you mean"),
        (dict(custom_keys=dict(head=dict(decay_mul=0.0))), "'head' sets 'decay_mul': did you mean decay_mult"),
        (dict(custom_keys=dict(head=0.0)), "'head' must be a dict such as"),
        (dict(custom_keys=["head"]), "'custom_keys' must be a dict such as"),
        (dict(flat_decay_mult=-1), "flat_decay_mult must be a number of at least 0, got -1"),
        (["flat_decay_mult"], "paramwise_cfg must be a dict"),
    ],
)
def test_a_rule_without_effect_is_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        build(model(), rules)


@pytest.mark.parametrize("rules", [dict(flat_decay_mult=0.0), dict(custom_keys=dict(head=dict(decay_mult=0.0)))])
def test_a_rule_on_what_is_not_set_is_refused(rules):
    """torch's AdamW decays by 0.01 unless told; MMEngine passes over ``flat_decay_mult`` without a word."""
    with pytest.raises(
        ValueError, match="decay_mult multiplies optim_wrapper.optimizer.weight_decay, which is not set"
    ):
        build(model(), rules, weight_decay=None)


# Two layers: what stands behind them at the full rate, the second layer at a half, the first at a quarter, the stem at
# an eighth.
RATES = {
    "CRATE": {"backbone.embedding.": 0.0125, "backbone.blocks.0.": 0.025, "backbone.blocks.1.": 0.05, "head.": 0.1},
    "ViT": {
        "backbone.class_token": 0.0125,
        "backbone.conv_proj.": 0.0125,
        "backbone.encoder.pos_embedding": 0.0125,
        "backbone.encoder.layers.encoder_layer_0.": 0.025,
        "backbone.encoder.layers.encoder_layer_1.": 0.05,
        "backbone.encoder.ln.": 0.1,
        "head.": 0.1,
    },
    "ToST": {
        "backbone.embedding.": 0.0125,
        "backbone.blocks.0.": 0.025,
        "backbone.blocks.1.": 0.05,
        "backbone.cls_token": 0.1,
        "backbone.class_blocks.": 0.1,
        "head.": 0.1,
    },
}


@pytest.mark.parametrize("kind", RATES)
def test_the_rate_falls_from_layer_to_layer(kind):
    net = model(kind) if kind != "ToST" else tost()
    of = {n: [rate for start, rate in RATES[kind].items() if n.startswith(start)] for n, _ in net.named_parameters()}
    wrapper = build(net, dict(layer_decay=0.5))
    rates = {name: rate for name, (rate, _) in settings(net, wrapper).items()}
    assert rates == pytest.approx({name: rate for name, (rate,) in of.items()})
    wrapper = build(net, dict(layer_decay=0.5, custom_keys={"head.fc": dict(lr_mult=3.0)}))
    rates = {name: rate for name, (rate, _) in settings(net, wrapper).items()}
    assert rates == pytest.approx(
        {name: rate * (3 if name.startswith("head.fc") else 1) for name, (rate,) in of.items()}
    )
    assert wrapper.optimizer.param_groups[0]["lr"] == 0.1  # which is what is said of a run


def tost():
    return ImageClassifier(
        backbone=dict(type="ToST", arch=ARCH, img_size=16, patch_size=8), head=dict(type="LinearHead", num_classes=5)
    )


@pytest.mark.parametrize("decay", [0, 1.5, "0.75", True, float("nan")])
def test_a_decay_of_the_rate_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match=r"layer_decay must be a number above 0 and at most 1, such as 0\.75, got"):
        build(model(), dict(layer_decay=decay))


def test_a_backbone_that_does_not_tell_its_stem_has_no_decay_of_the_rate():
    net = model()
    net.backbone.stem = ()
    with pytest.raises(ValueError, match="layer_decay: CRATE has no stem: set it to the names"):
        build(net, dict(layer_decay=0.5))


def test_keys_of_frozen_parameters_are_no_mistake():
    net = model()
    net.backbone.requires_grad_(False)
    wrapper = build(net, ALPHA)
    assert {name for group in wrapper.optimizer.param_groups for name in group["names"]} == {
        "head.norm.weight", "head.norm.bias", "head.fc.weight", "head.fc.bias",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["Lion", "AdamW", "SGD"])
def test_groups_take_the_steps_of_single_parameters(name):
    rules = dict(ALPHA, custom_keys={**ALPHA["custom_keys"], "head.fc": dict(lr_mult=0.3)})
    net, other = model(), model()
    kind = lion_pytorch.Lion if name == "Lion" else getattr(torch.optim, name)
    wanted = settings(net, build(net, rules))
    single = [{"params": [p], "lr": wanted[n][0], "weight_decay": wanted[n][1]} for n, p in other.named_parameters()]
    optimizers = build(net, rules, type=name).optimizer, kind(single)
    assert len(optimizers[0].param_groups) == 3
    for _ in range(3):
        for one, optimizer in zip((net, other), optimizers):
            torch.manual_seed(1)
            for p in one.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
    for (key, a), b in zip(net.named_parameters(), other.parameters()):
        assert torch.equal(a, b), key


def test_the_runner_takes_it():
    assert OPTIM_WRAPPER_CONSTRUCTORS.get("DefaultOptimWrapperConstructor") is DefaultOptimWrapperConstructor


@pytest.mark.slow
def test_other_groups_are_not_resumed_from(tmp_path):
    keys = [{f"blocks.{layer}.": dict(decay_mult=0.0)} for layer in (0, 1)]  # of parameters of the same shapes
    options = dict(train_cfg__max_epochs=1, global_batch_size=106)
    train(tmp_path, optim_wrapper__paramwise_cfg=dict(custom_keys=keys[0]), **options)
    with pytest.raises(CheckpointError, match="with other parameter groups .*paramwise_cfg"):
        train(tmp_path, resume=True, optim_wrapper__paramwise_cfg=dict(custom_keys=keys[1]), **options)
    log = log_of(tmp_path)
    assert "8 parameters have lr 0.001, weight_decay 0.0: backbone.blocks.0.norm_compress.weight, ..." in log
    assert "paramwise_options" not in log
