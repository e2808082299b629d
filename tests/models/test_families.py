"""What every registered family does, with the same arguments: whoever adds one finds it tested here."""

import copy

import pytest
import torch

from crate_mm import get_model
from crate_mm.analysis.attention import cls_attention
from crate_mm.analysis.cost import count_complexity
from crate_mm.analysis.gather import defined_measures, measure_layers
from crate_mm.analysis.table import MEASURES
from crate_mm.analysis.taps import capture, find_layers
from crate_mm.checkpoints import as_checkpoint
from crate_mm.checkpoints.fit import transfer_backbone
from crate_mm.config import load_config
from crate_mm.models import Backbone, ImageClassifier, Positions
from crate_mm.registry import BACKBONES, MODELS, head_for

BACKBONES.names()  # registers them
OURS = {name: family for name, family in BACKBONES.module_dict.items() if family.__module__.startswith("crate_mm.")}
FAMILIES = sorted(name for name, family in OURS.items() if family.sizes is not None)  # not timm's, which have none
MICRO = dict(embed_dim=48, depth=2, num_heads=3)


def classifier(family, seed=0, **backbone):
    torch.manual_seed(seed)
    arguments = dict(arch=MICRO, img_size=32, patch_size=8, in_channels=3)
    head = dict(type="LinearHead", num_classes=5, **head_for(family))
    return ImageClassifier(dict(type=family, **{**arguments, **backbone}), head).eval()


def positions_of(model):
    return {name: how for name, how in model.backbone.resizable().items() if isinstance(how, Positions)}


def pixels(batch=2, size=(32, 32), channels=3):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_tokens_and_gradients_are_finite(family):
    model = classifier(family).train()
    torch.nn.init.normal_(model.head.fc.weight)
    tokens = model.backbone(pixels())
    assert tokens.shape == (2, 1 + 16, 48)
    model(pixels(), torch.tensor([1, 2]), mode="loss")["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_what_a_config_needs_to_know_is_there(family):
    model = classifier(family)
    assert (model.backbone.embed_dim, model.backbone.in_channels, model.backbone.img_size) == (48, 3, (32, 32))
    assert len(model.backbone.blocks) == 2
    assert model.example()["inputs"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(("size", "channels"), [(64, 3), (16, 1)])
def test_other_sizes_and_channels(family, size, channels):
    model = BACKBONES.build(dict(type=family, arch=MICRO, img_size=size, patch_size=8, in_channels=channels)).eval()
    with torch.no_grad():
        tokens = model(pixels(size=(size, size), channels=channels))
    assert tokens.shape == (2, 1 + (size // 8) ** 2, 48)
    with pytest.raises(ValueError, match=r"expected images of shape \(B, "):
        model(pixels(size=(size, size), channels=5))


def test_a_state_dict_goes_round(family, tmp_path):
    model, other = classifier(family), classifier(family, seed=7)
    with torch.no_grad():
        model.train()(pixels())  # whatever training changes goes with it
        expected = model.eval()(pixels())
        assert not torch.equal(other(pixels()), expected)
        torch.save(model.state_dict(), tmp_path / "x.pth")
        other.load_state_dict(torch.load(tmp_path / "x.pth"))
        assert torch.equal(other(pixels()), expected)
        assert torch.equal(copy.deepcopy(model)(pixels()), expected)


@pytest.mark.slow
def test_a_layer_compiles_without_a_break(family):
    model = classifier(family).train()
    layer = torch.compile(model.backbone.blocks[0], fullgraph=True, backend="eager")
    z = torch.randn(2, 17, 48, requires_grad=True)
    torch.testing.assert_close(layer(z), model.backbone.blocks[0](z))
    layer(z).square().sum().backward()
    gradient, z.grad = z.grad, None
    model.backbone.blocks[0](z).square().sum().backward()
    torch.testing.assert_close(z.grad, gradient)


@pytest.mark.parametrize("family", [name for name in FAMILIES if hasattr(BACKBONES.get(name), "fuse")])
def test_a_fused_model_is_the_same_function(family):
    model = classifier(family).double()
    with torch.no_grad():
        expected = model(pixels().double())
        model.backbone.fuse()
        torch.testing.assert_close(model(pixels().double()), expected, rtol=1e-10, atol=1e-10)


def test_low_precision(family):
    model = classifier(family)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(pixels())
    torch.testing.assert_close(logits.float(), model(pixels()), rtol=0.1, atol=0.1)


def test_measures_are_defined_or_refused(family):
    model = classifier(family)
    defined = defined_measures(model)
    assert "r_out" in defined
    with torch.no_grad(), measure_layers(model) as measures:
        model(pixels())
    for name in MEASURES:
        if name in defined:
            means = measures.means(name)
            assert len(means) == 2, name
            assert all(-1e6 < mean < 1e6 for mean in means), name
        else:
            with (
                pytest.raises(ValueError, match=f"{family} has none of {name}"),
                measure_layers(model, measures=[name]),
            ):
                pass


def test_what_a_layer_offers_holds_together(family):
    """A code has a price, R^c has what it is measured against, and attention's rows sum to 1."""
    model = classifier(family)
    for step in find_layers(model).values():
        taps, subspaces = step.taps(), step.subspaces()
        assert {"tap_w", "tap_out"} <= taps.keys()
        assert ("tap_code" in taps) == (step.lambd is not None)
        assert "tap_code" in taps or not step.returns_code
        if subspaces is not None:
            assert subspaces.U.shape[0] == 48
            assert subspaces.U.shape[1] % subspaces.num_heads == 0
        maps = step.maps(torch.randn(1, 17, 48))
        if "attention" in maps:
            sums = maps["attention"].values.sum(-1)
            torch.testing.assert_close(sums, torch.ones_like(sums))


def test_figures_are_drawn_or_refused(family):
    model = classifier(family)
    if find_layers(model)[0].attention(torch.randn(1, 4, 48)) is None:
        with pytest.raises(ValueError, match=f"{family} has no attention map"):
            cls_attention(model, pixels())
    else:
        assert cls_attention(model, pixels())[1].shape == (2, 3, 16)
    for name, (grid, _) in positions_of(model).items():
        assert grid == model.backbone.layout(pixels())[1:]
        assert model.backbone.state_dict()[name].shape == (1, 1 + grid[0] * grid[1], 48)


def test_its_layers_tokens_are_as_many_as_it_says(family):
    model = classifier(family, img_size=(16, 40))
    first, rows, columns = model.backbone.layout(pixels(size=(16, 40)))
    assert (rows, columns) == (2, 5)
    with torch.no_grad(), capture(model, ("tap_out",)) as seen:
        model(pixels(size=(16, 40)))
    assert [z.shape[1] for z in seen["tap_out"]] == [first + rows * columns] * 2


def test_where_a_patch_is_in_its_layers(family):
    """What is seen of one patch alone changes most in that patch's token of the first layer, at its row and column."""
    model, images = classifier(family), pixels(batch=1)
    other = images.clone()
    other[..., 8:10, 16:18] += 3  # row 1, column 2 of patches of 8: its corner, on which a stem of strides is centred
    first, rows, columns = model.backbone.layout(images)
    with torch.no_grad(), capture(model, ("tap_out",), [0]) as seen:
        model(images)
        before = seen["tap_out"][0]
        model(other)
        change = (seen["tap_out"][0] - before).norm(dim=-1)[0, first:].view(rows, columns)
    assert change.argmax().item() == 1 * columns + 2


def test_a_new_head_is_the_familys(family):
    """By name, and where a transfer puts a head on a model without one or with one of its own: the same head."""
    sizes = BACKBONES.get(family).sizes
    named = get_model(f"{sizes.prefix}_{next(iter(sizes.archs))}", num_classes=7)
    backbone = dict(type=family, arch=MICRO, img_size=32, patch_size=8)
    bare, own = dict(type="MaskedAutoencoder", backbone=backbone), dict(type="LinearHead", num_classes=1000)
    with_head = dict(type="ImageClassifier", backbone=backbone, head=own)
    for model in (bare, with_head):
        cfg = load_config("transfer/cifar10", {"model.head.num_classes": 7}, model=model)
        assert cfg.model.head == dict(type="LinearHead", num_classes=7, **head_for(family))
        head = MODELS.build(cfg.model).head
        assert repr(head.norm).partition("(")[0] == repr(named.head.norm).partition("(")[0]
        assert getattr(head.norm, "eps", None) == getattr(named.head.norm, "eps", None)
    as_it_is = load_config("transfer/cifar10", model=with_head, full_model=True)
    assert as_it_is.model.head == own
    ends_with_norm = isinstance([m for m in named.backbone.modules() if not list(m.children())][-1], torch.nn.LayerNorm)
    assert isinstance(named.head.norm, torch.nn.Identity) == ends_with_norm


def test_its_backbone_is_taken_over_at_another_size(family):
    model, bigger = classifier(family), classifier(family, seed=3, img_size=48)
    torch.nn.init.normal_(bigger.head.fc.weight)
    checkpoint = as_checkpoint({"state_dict": model.state_dict()})
    result = transfer_backbone(bigger, checkpoint)
    grids = positions_of(bigger)
    assert result.resized.keys() == {f"backbone.{name}" for name in grids}
    assert not any(name.startswith("backbone.") for name in result.new)
    same = bigger.backbone.state_dict()
    assert all(
        torch.equal(value, same[name]) for name, value in model.backbone.state_dict().items() if name not in grids
    )


def test_cost_is_counted(family):
    model = classifier(family)
    cost = count_complexity(model, model.example())
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.flops > 16 * 48 * 48


def test_a_frozen_backbone_does_not_change(family):
    """BatchNorm's statistics, where there are such, are a part of it."""
    built = classifier(family)
    model = ImageClassifier(built.backbone, built.head, freeze_backbone=True).train()
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    loss = model(pixels(), torch.tensor([1, 2]), mode="loss")["loss"]
    loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert all(p.grad is None for p in model.backbone.parameters())
    assert model.head.fc.weight.grad.any()


def test_attention_of_a_first_token_of_unknown_kind_is_refused(monkeypatch):
    model = classifier("CRATE")
    monkeypatch.setattr(type(model.backbone), "layout", Backbone.layout)
    with pytest.raises(ValueError, match="CRATE does not define whether its first token is a CLS token"):
        cls_attention(model, pixels())
