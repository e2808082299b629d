"""Our models by timm's interface, and timm's models as backbones; skipped where timm is not installed."""

import copy
import re
import sys

import pytest
import torch
from mmengine import Config

from crate_mm import get_model, init_model
from crate_mm.analysis.attention import cls_attention
from crate_mm.analysis.gather import defined_measures
from crate_mm.checkpoints import CheckpointError, open_checkpoint
from crate_mm.checkpoints.fit import load_strict, transfer_backbone
from crate_mm.checkpoints.publish import publish
from crate_mm.config import load_config
from crate_mm.engine import Runner
from crate_mm.inference.standalone import build_transferred_model, load_config_and_checkpoint
from crate_mm.models import ImageClassifier, Positions
from crate_mm.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from tests.training import debug_config

timm = pytest.importorskip("timm")
from timm.optim import create_optimizer_v2  # noqa: E402
from timm.scheduler import create_scheduler_v2  # noqa: E402
from timm.utils import accuracy  # noqa: E402

import crate_mm.timm  # noqa: E402

MICRO = dict(arch=dict(embed_dim=48, depth=3, num_heads=3), img_size=32, patch_size=8)
NAMES = [
    "crate_tiny_patch16_224",
    "crate_alpha_tiny_patch16_224",
    "crate_mae_tiny_patch16_224",
    "tost_tiny_12_patch16_224",
    "cbt_tiny_patch16_224",
    "torchvision_vit_tiny_patch16_224",
]


def images(batch=2, size=32):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=NAMES)
def model(request):
    torch.manual_seed(0)
    return timm.create_model(request.param, num_classes=5, **MICRO).eval()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_model_as_by_our_name(name):
    ours = get_model(name.removeprefix("torchvision_").removesuffix("_patch16_224"), num_classes=7, img_size=64)
    torch.nn.init.normal_(ours.head.fc.weight)
    theirs = timm.create_model(name, num_classes=7, img_size=64).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(theirs(images(size=64)), ours(images(size=64)), rtol=1e-5, atol=1e-5)
    assert theirs.default_cfg["input_size"] == (3, 224, 224)
    data = timm.data.resolve_data_config({}, model=theirs)
    assert data["mean"] == (0.485, 0.456, 0.406)
    config = "tost_tiny_in1k" if "tost" in name else "crate_tiny_in1k"
    resize, crop = load_config(config).test_dataloader.dataset.transforms
    assert (data["crop_pct"], data["interpolation"]) == (
        crop.size / resize.size,
        resize.get("interpolation", "bilinear"),
    )


def test_every_registered_name_is_a_model_of_ours():
    ours = [name for name in timm.list_models() if name in crate_mm.timm.default_cfgs]
    assert {"crate_base_patch16_224", "crate_alpha_large_patch14_224", "tost_small_12_patch16_224"} <= set(ours)
    with torch.device("meta"):
        base = timm.create_model("crate_base_patch16_224")
    assert sum(p.numel() for p in base.parameters()) == 22_796_008
    assert "vit_small_patch16_224" not in ours  # timm's own


@torch.no_grad()
def test_its_interface(model):
    x = images()
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 17, 48)
    assert torch.equal(model(x), model.forward_head(tokens))
    assert torch.equal(model.get_classifier()(model.forward_head(tokens, pre_logits=True)), model(x))
    last, layers = model.forward_intermediates(x, indices=[0, 2])
    assert torch.equal(last, tokens)
    assert [z.shape for z in layers] == [(2, 48, 4, 4)] * 2
    (flat,) = model.forward_intermediates(x, indices=1, output_fmt="NLC", intermediates_only=True)
    assert torch.equal(flat.mT.unflatten(2, (4, 4)), layers[-1])
    if "ToST" not in model.kind:  # behind whose layers is class attention
        behind = getattr(model.backbone, "norm", None) or getattr(getattr(model.backbone, "encoder", None), "ln", None)
        assert torch.allclose(behind(flat) if behind else flat, tokens[:, 1:], atol=1e-6)
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, 48)
    with pytest.raises(ValueError, match="global_pool must be 'token', 'avg' or, with num_classes=0, ''"):
        model.reset_classifier(3, "")


def test_features_only_and_recomputed_layers(model):
    features = timm.create_model(f"{NAMES[0]}", features_only=True, out_indices=(0, 2), **MICRO)
    assert [z.shape for z in features(images())] == [(2, 48, 4, 4)] * 2
    assert (features.feature_info.channels(), features.feature_info.reduction()) == ([48, 48], [8, 8])
    expected = torch.autograd.grad(model(images()).square().sum(), list(model.backbone.blocks.parameters())[:1])
    model.set_grad_checkpointing()
    found = torch.autograd.grad(model(images()).square().sum(), list(model.backbone.blocks.parameters())[:1])
    torch.testing.assert_close(found, expected)
    model.set_grad_checkpointing(False)
    assert "forward" not in model.backbone.blocks[0].__dict__


def test_timms_training_loop(model):
    """Its optimizer with rates by layer and without decay for what should have none, its schedule, its accuracy."""
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.1, layer_decay=0.75)
    scales = sorted({round(group["lr_scale"], 4) for group in optimizer.param_groups})
    assert scales == [round(0.75**n, 4) for n in (4, 3, 2, 1, 0)]  # embedding, three layers, what is behind
    without = {id(p) for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    named = dict(model.named_parameters())
    assert {id(named[name]) for name in model.no_weight_decay()} <= without
    schedule, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=8)
    x, y = images(10), torch.arange(10) % 5
    model.train()
    losses = []
    for epoch in range(8):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step(epoch + 1)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    (top1,) = accuracy(model(x), y)
    assert top1 > 20


def test_a_checkpoint_of_ours_is_timms(tmp_path, debug_checkpoint):
    publish(open_checkpoint(debug_checkpoint), tmp_path / "x.safetensors")
    ours = init_model(None, tmp_path / "x.safetensors")
    settings = dict(arch=dict(embed_dim=48, depth=2, num_heads=3), img_size=8, patch_size=2, in_chans=1)
    assert ours.backbone.embed_dim == 48
    theirs = timm.create_model(
        NAMES[0], num_classes=10, global_pool={"cls": "token", "mean": "avg"}[ours.head.pool], **settings,
        checkpoint_path=str(tmp_path / "x.safetensors"),
    ).eval()  # fmt: skip
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(theirs(x), ours(x))


def test_what_is_not_there_is_said(monkeypatch):
    for name, why in (
        (
            "crate_tiny_patch16_224",
            "no published weights of crate_tiny are known here, only of crate_mini_digits, crate_micro",
        ),
        ("crate_small_patch16_224", "their authors' link has been dead since 2025; see https://github.com/"),
        (
            "crate_alpha_base_patch16_224",
            r"crate_mm.get_model\('crate_alpha_base', pretrained=True\) loads crate_alpha_b",
        ),
    ):
        with pytest.raises(RuntimeError, match=f"timm has no pretrained weights of {name}: {why}"):
            timm.create_model(name, pretrained=True)
    with pytest.raises(ValueError, match="drop_rate must be 0"):
        timm.create_model(NAMES[0], drop_rate=0.1, **MICRO)
    with pytest.raises(ValueError, match="timm has no model 'vit_smal_patch16_224': did you mean vit_small"):
        crate_mm.timm.TimmBackbone("vit_smal_patch16_224")
    with pytest.raises(ValueError, match="layer 3 does not exist: the model has 3, the first is 0"):
        timm.create_model(NAMES[0], **MICRO).forward_intermediates(images(), indices=[3])
    for option in ("checkpoint_path", "pretrained_cfg_overlay"):
        with pytest.raises(ValueError, match=f"TimmBackbone does not accept {option}"):
            crate_mm.timm.TimmBackbone("vit_tiny_patch16_224", **{option: "x.pth"})
    with pytest.raises(ValueError, match="img_size must be from 1 to 8192 pixels, got 70000"):
        crate_mm.timm.TimmBackbone("vit_tiny_patch16_224", img_size=70000)
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "crate_mm.timm")
    with pytest.raises(ImportError, match=r"needs timm, which is not installed: pip install 'crate_mm\[timm\]'"):
        import crate_mm.timm as _again  # noqa: F401


# timm's models here ---------------------------------------------------------------------------------------------------


def timm_backbone(name="vit_tiny_patch16_224", **options):
    options = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3) | options
    return crate_mm.timm.TimmBackbone(name, **options).eval()


def test_a_vit_of_timms_has_the_tokens_and_the_attention_that_timm_computes():
    torch.manual_seed(0)
    backbone = timm_backbone()
    model = ImageClassifier(backbone, torch.nn.Linear(48, 5))
    seen = []
    for block in backbone.layers:
        block.compress.attn.fused_attn = False
        block.compress.attn.attn_drop.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        torch.testing.assert_close(backbone(images()), backbone.model.forward_features(images()))
        attention = cls_attention(model, images(), [0, 1])
    for layer in (0, 1):
        torch.testing.assert_close(attention[layer], seen[-2 + layer][:, :, 0, 1:])
    assert defined_measures(model) == ["r_out"]
    assert backbone.resizable() == {"model.pos_embed": Positions((4, 4))}


@pytest.mark.parametrize(
    ("name", "options", "space"),
    [("resnet10t", {}, (2, 3)), ("swin_tiny_patch4_window7_224", dict(depths=(1, 1, 1, 1)), (1, 2))],
)
def test_a_model_without_a_cls_token_has_its_mean_in_the_place(name, options, space):
    torch.manual_seed(0)
    backbone = crate_mm.timm.TimmBackbone(name, in_channels=1, **options).eval()
    x = torch.randn(2, 1, *backbone.img_size)
    with torch.no_grad():
        tokens, expected = backbone(x), backbone.model.forward_features(x)
    assert tokens.shape == (2, 1 + 49 if "swin" in name else 1 + 36, backbone.embed_dim)
    torch.testing.assert_close(tokens[:, 0], expected.mean(dim=space))
    assert backbone.layers == []
    assert backbone.layout(x) is None


def test_registers_alone_are_no_cls_token():
    backbone = timm_backbone("vit_medium_patch16_reg4_gap_256")
    with torch.no_grad():
        tokens, theirs = backbone(images()), backbone.model.forward_features(images())
    torch.testing.assert_close(tokens[:, 0], theirs[:, 4:].mean(dim=1))
    torch.testing.assert_close(tokens[:, 1:], theirs[:, 4:])


@pytest.mark.slow
def test_it_trains_and_opens_by_what_its_file_says(tmp_path):
    cfg = debug_config(train_cfg__max_epochs=1)
    sizes = dict(img_size=8, patch_size=4, embed_dim=48, depth=2, num_heads=3)
    cfg.model.backbone = dict(
        type="TimmBackbone", name="vit_tiny_patch16_224", in_channels=1, pretrained=False, **sizes
    )
    cfg.model.head = dict(type="LinearHead", num_classes=10, norm=False)
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(cfg)
    runner.train()
    model = init_model(None, tmp_path / "epoch_1.pth")
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(x), runner.model.eval()(x))


def test_the_rate_falls_over_a_timm_models_layers_as_in_timm():
    """But for the last LayerNorm, which timm counts to the last layer, and BEiT and MAE to the head."""
    model = ImageClassifier(
        dict(type="TimmBackbone", name="vit_tiny_patch16_224", img_size=32), dict(type="LinearHead", num_classes=5)
    )
    wrapper = OPTIM_WRAPPER_CONSTRUCTORS.get("DefaultOptimWrapperConstructor")(
        dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1.0)), dict(layer_decay=0.75)
    )(model)
    ours = {name: group["lr"] for group in wrapper.optimizer.param_groups for name in group["names"]}
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5)
    of = {id(parameter): name for name, parameter in theirs.named_parameters()}
    groups = timm.optim.param_groups_layer_decay(theirs, layer_decay=0.75)
    scales = {of[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    for name, scale in scales.items():
        if not name.startswith(("head.", "norm.")):
            number = re.match(r"blocks\.\d+\.", name)
            name = f"{number[0]}layer.{name[number.end() :]}" if number else name
            name = name.replace("layer.attn.", "compress.attn.")
            assert ours[f"backbone.model.{name}"] == pytest.approx(scale), name
    assert ours["head.fc.weight"] == scales["head.weight"] == ours["backbone.model.norm.weight"] == 1


def test_a_backbone_of_large_images_is_built_without_a_pass_over_them():
    """A pass over 262,144 tokens takes gigabytes and half a minute."""
    passed = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda _module, inputs: passed.extend(x.shape for x in inputs if isinstance(x, torch.Tensor) and not x.is_meta)
    )
    try:
        sizes = dict(embed_dim=16, depth=1, num_heads=1, img_size=8192, pos_embed="none")
        backbone = crate_mm.timm.TimmBackbone("vit_tiny_patch16_224", **sizes)
    finally:
        hook.remove()
    assert passed == []
    assert backbone.num_tokens == 1 + 512 * 512
    assert not any(value.is_meta for value in backbone.state_dict().values())


def test_a_file_asks_nobody_for_weights_where_a_config_takes_its_model(tmp_path, monkeypatch):
    sizes = dict(img_size=8, patch_size=4, embed_dim=48, depth=1, num_heads=3, in_channels=1)
    model = dict(
        type="ImageClassifier",
        backbone=dict(type="TimmBackbone", name="vit_tiny_patch16_224", **sizes),
        head=dict(type="LinearHead", num_classes=10, norm=False),
        preprocessor=dict(type="ImagePreprocessor", mean=(0.5,), std=(0.5,)),
    )
    state = MODELS.build(copy.deepcopy(model)).state_dict()
    model["backbone"]["pretrained"] = True
    torch.save({"meta": {"model": model}, "state_dict": state}, tmp_path / "x.pth")
    cfg, opened = load_config_and_checkpoint("transfer/digits", tmp_path / "x.pth")
    assert cfg.model.backbone.pretrained is False
    asked = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, given, **rest: asked.append(given) or create(name, **rest))
    built, _ = build_transferred_model(cfg, opened)
    assert asked == [False]
    weights = {name.removeprefix("backbone."): state[name] for name in state if name.startswith("backbone.")}
    torch.testing.assert_close(dict(built.backbone.state_dict()), weights)


# timm's files for timm's models here ----------------------------------------------------------------------------------

VIT = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3)
WITH_TIMMS_CLASSIFIER = {
    "vit_tiny_patch16_224": VIT,
    "vit_base_patch16_siglip_gap_224": VIT,  # the mean of the tokens
    "vit_small_patch16_36x1_224": VIT,
    "resnet18": {},
}


def classifier_config(name, num_classes=5, **options):
    backbone = dict(type="TimmBackbone", name=name, **options)
    return Config(
        dict(
            model=dict(
                type="ImageClassifier",
                backbone=backbone,
                head=dict(type="LinearHead", num_classes=num_classes, norm=False),
            )
        )
    )


def timms_file(path, name, **options):
    torch.manual_seed(1)
    model = timm.create_model(name, **{"num_classes": 5, **options}).eval()
    for value in model.parameters():  # biases and class tokens may start as zeros
        torch.nn.init.normal_(value, std=0.05)
    torch.save({"state_dict": model.state_dict(), "epoch": 3, "arch": name}, path)
    return model, path


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_TIMMS_CLASSIFIER)
def test_a_file_of_timms_gives_timms_logits(name, tmp_path):
    options = WITH_TIMMS_CLASSIFIER[name]
    theirs, file = timms_file(tmp_path / "timm.pth", name, **options)
    model = init_model(classifier_config(name, **options), file)
    x = torch.randn(2, 3, *model.backbone.img_size)
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs(x))
    built = MODELS.build(classifier_config(name, **options).model)
    state = torch.random.get_rng_state()
    taken = transfer_backbone(built, open_checkpoint(file))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert taken.loaded.keys() == {key for key in built.state_dict() if key.startswith("backbone.")}
    assert taken.new.keys() == taken.dropped.keys() == {"head.fc.weight", "head.fc.bias"}
    with torch.no_grad():
        torch.testing.assert_close(built.eval().backbone(x), model.backbone(x))


def test_a_head_without_classes_leaves_timms_classifier_out(tmp_path):
    theirs, file = timms_file(tmp_path / "timm.pth", "vit_tiny_patch16_224", **VIT)
    model, opened = MODELS.build(classifier_config("vit_tiny_patch16_224", 0, **VIT).model), open_checkpoint(file)
    load_strict(model, opened)
    assert "weights that the model does not use: head.weight, head.bias" in opened.notes
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images()), theirs.forward_features(images())[:, 0])


@pytest.mark.parametrize(
    ("name", "options", "fitted", "transferred"),
    [
        (
            "vit_tiny_patch16_224",
            {**VIT, "embed_dim": 96},
            r"backbone.model.cls_token is \(1, 1, 96\) in the file and \(1, 1, 48\) in the model",
            "timm.pth is of another model",
        ),
        ("vit_tiny_patch16_224", {**VIT, "depth": 3}, r"backbone.blocks.2.norm1.weight is unexpected", None),
        ("vit_tiny_patch16_224", {**VIT, "num_classes": 0}, "head.fc.weight is missing", None),
        (
            "vit_tiny_patch16_224",
            {**VIT, "global_pool": "avg"},  # fc_norm behind the mean, which no head here has
            "backbone.model.norm.weight is missing",
            None,
        ),
        ("resnet18", {}, "backbone.model.cls_token is missing", "timm.pth is of another model"),
    ],
)
def test_a_wrong_file_of_timms_is_refused(name, options, fitted, transferred, tmp_path):
    _, file = timms_file(tmp_path / "timm.pth", name, **options)
    with pytest.raises(CheckpointError, match=fitted):
        init_model(classifier_config("vit_tiny_patch16_224", **VIT), file)
    model = MODELS.build(classifier_config("vit_tiny_patch16_224", **VIT).model)
    if transferred:
        with pytest.raises(CheckpointError, match=transferred):
            transfer_backbone(model, open_checkpoint(file))
    else:
        assert "backbone.model.cls_token" in transfer_backbone(model, open_checkpoint(file)).loaded


@pytest.mark.slow
def test_a_classifier_for_another_pooling_is_not_taken(tmp_path):
    """ConvNeXt has a LayerNorm between mean and classifier: its classifier means nothing on the mean."""
    _, file = timms_file(tmp_path / "timm.pth", "convnext_atto")
    with pytest.raises(CheckpointError, match=r"head.fc.weight is missing; .*backbone.head.fc.weight is unexpected"):
        init_model(classifier_config("convnext_atto"), file)
    model = MODELS.build(classifier_config("convnext_atto").model)
    assert transfer_backbone(model, open_checkpoint(file)).new.keys() == {"head.fc.weight", "head.fc.bias"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("crossvit_9_240", {}, "crossvit_9_240 does not return tokens: its features are a list"),
        ("ghostnet_050", dict(drop_path=0.1), "timm's ghostnet_050 does not accept .*drop_path_rate"),
        ("resnet18", dict(img_size=32), "timm's resnet18 does not accept these arguments: .*img_size"),
    ],
)
def test_models_that_are_no_backbones_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        crate_mm.timm.TimmBackbone(name, **options)


@pytest.mark.slow
def test_a_model_whose_constructor_has_no_stochastic_depth_is_built():
    with torch.device("meta"):
        assert crate_mm.timm.TimmBackbone("ghostnet_050")(torch.zeros(1, 3, 224, 224)).shape == (1, 50, 480)
