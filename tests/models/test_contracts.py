"""The contracts of a backbone and a layer: all that are here keep them, and a broken part is named in a sentence."""

import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from crate_mm.datasets.base import IMAGE, SampleDataset
from crate_mm.models import Backbone, ImageClassifier, InputSpec, LinearHead, MaskedAutoencoder, TokenLayout
from crate_mm.models.families.block import build_block
from crate_mm.models.layers import MSSA, TSSA, Block, Compression, DecoderBlock, Map, Sparsification, Subspaces
from crate_mm.registry import BACKBONES
from crate_mm.testing import check_backbone, check_layer
from tests.models.test_families import FAMILIES, MICRO

SMALL = dict(arch=MICRO, img_size=(16, 24), patch_size=8)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_the_contract(family):
    check_backbone(BACKBONES.build(dict(type=family, **SMALL)))


@pytest.mark.parametrize("compress", ["SoftmaxAttention", "TSSA", "CBSA"])
def test_aot_of_any_compression_keeps_the_contract(compress):
    check_backbone(BACKBONES.build(dict(type="AoT", **SMALL, compress=dict(type=compress))))


@pytest.mark.parametrize("operators", [("MSSA", None), (None, "ISTA"), ("TSSA", "MLP"), ("SoftmaxAttention", None)])
@pytest.mark.parametrize("residual", [False, True])
def test_a_block_of_any_operators_keeps_the_contract(operators, residual):
    compress, sparsify = (None if kind is None else dict(type=kind) for kind in operators)
    check_layer(build_block(24, 3, compress, sparsify, residual=residual), 24)


def test_an_operator_that_only_claims_to_be_causal_is_named():
    check_layer(Block(24, MSSA(24, 3, causal=True), None), 24)
    tssa = TSSA(24, 3, context_length=7)
    check_layer(Block(24, tssa, None), 24)
    tssa._total = lambda name, x, cache: x.sum(-2, keepdim=True)
    with pytest.raises(AssertionError, match="Block: TSSA.causal is True, but tokens that are passed in parts"):
        check_layer(Block(24, tssa, None), 24)


def test_a_decoders_layer_keeps_the_contract():
    check_layer(DecoderBlock(24, MSSA(24, 3)), 24)


def test_a_layer_without_a_sparsification_returns_what_is_compressed():
    """AoT's layer: Z + MSSA(LN(Z)), without a weight, a tap or a number of a sparsification."""
    block = build_block(24, 3, dict(type="MSSA"), None, layer_scale=0.5, residual=True).double()
    z = torch.randn(2, 7, 24, dtype=torch.float64)
    update = block.compress(block.norm_compress(z))
    torch.testing.assert_close(block(z), z + 0.5 * update, rtol=1e-12, atol=1e-12)
    assert {name.partition(".")[0] for name, _ in block.named_parameters()} == {
        *("norm_compress", "compress", "gamma_compress")
    }
    assert (block.lambd, block.returns_code, "tap_code" in block.taps()) == (None, False, False)


def test_none_is_no_operator_and_the_default_is_the_familys():
    model = BACKBONES.build(dict(type="CRATE", **SMALL, sparsify=None))
    assert [layer.sparsify for layer in model.layers] == [None, None]
    default = BACKBONES.build(dict(type="CRATE", **SMALL)).layers[0]
    assert (type(default.compress).__name__, type(default.sparsify).__name__) == ("MSSA", "ISTA")
    with pytest.raises(ValueError, match="a layer needs an operator"):
        BACKBONES.build(dict(type="CRATE", **SMALL, compress=None, sparsify=None))
    with pytest.raises(ValueError, match="sparsify must be a config such as .* got 'ISTA'"):
        BACKBONES.build(dict(type="CRATE", **SMALL, sparsify="ISTA"))


class GridMean(Compression):
    """The mean of each row of patches, which needs to know the grid; its map is from rows of patches to tokens."""

    needs_layout = True

    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x, layout):
        prefix, rows, columns = layout
        patches = self.tap_w(self.proj(x))[:, prefix:].unflatten(1, (rows, columns))
        means = patches.mean(2, keepdim=True).expand(-1, -1, columns, -1).flatten(1, 2)
        return torch.cat([torch.zeros_like(x[:, :prefix]), means], dim=1)

    def maps(self, w, layout=None):
        share = torch.eye(layout.rows).repeat_interleave(layout.columns, 1) / layout.columns
        return {"rows": Map(share.expand(len(w), 1, -1, -1), "rows of patches", "patches")}


def test_the_layout_reaches_the_operators_that_need_it(monkeypatch):
    from crate_mm.registry import LAYERS

    monkeypatch.setitem(LAYERS.module_dict, "GridMean", GridMean)
    model = BACKBONES.build(dict(type="CRATEMAE", **SMALL, compress=dict(type="GridMean")))
    assert model.layers[0].maps(torch.zeros(1, 7, 48), TokenLayout(1, 2, 3))["rows"].values.shape == (1, 1, 2, 6)


class Good(Backbone):
    stem = ("proj",)

    def __init__(self):
        super().__init__()
        self.embed_dim = 24
        self.proj = nn.Conv2d(3, 24, 8, 8)
        self.blocks = nn.ModuleList(build_block(24, 3, dict(type="MSSA"), dict(type="ISTA")) for _ in range(2))

    @property
    def input_spec(self):
        return InputSpec(3, (16, 24))

    def layout(self, inputs):
        return TokenLayout(0, 2, 3)

    def forward(self, images):
        z = self.proj(images).flatten(2).mT
        for block in self.blocks:
            z = block(z, self.layout(images))
        return z


class WrongLayout(Good):
    def layout(self, inputs):
        return TokenLayout(1, 2, 3)


class WrongStem(Good):
    stem = ("patches",)


class Backwards(Good):
    def forward(self, images):
        z = self.proj(images).flatten(2).mT
        for block in reversed(self.blocks):
            z = block(z)
        return z


class MixesSamples(Good):
    def forward(self, images):
        return super().forward(images - images.mean(0))


class Unused(Good):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Transposed(Good):
    def forward(self, images):
        return super().forward(images).mT


class NoWidth(Good):
    def __init__(self):
        super().__init__()
        del self.embed_dim


def test_a_backbone_of_ones_own_keeps_the_contract():
    check_backbone(Good())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (WrongLayout, r"WrongLayout.layout\(\) says 1 \+ 2 x 3 tokens, but layer 0 returns 6"),
        (WrongStem, "WrongStem.stem names 'patches', but no parameter name starts with it"),
        (Backwards, "Backwards.layers must be called once each, in this order"),
        (MixesSamples, "MixesSamples mixes the samples of a batch"),
        (Unused, "Unused: no gradient reaches spare.weight, spare.bias"),
        (Transposed, r"Transposed must return \(B, N, 24\) for 3 samples, got \(3, 24, 6\)"),
        (NoWidth, "NoWidth lacks embed_dim"),
        (lambda: nn.Conv2d(3, 24, 8), "Conv2d is no backbone: let it inherit from crate_mm.models.Backbone"),
    ],
)
def test_what_a_backbone_lacks_is_named(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_backbone(broken())


class NoTap(Compression):
    def forward(self, x):
        return x


class WrongSums(MSSA):
    def maps(self, w, layout=None):
        return {"attention": Map(2 * super().maps(w)["attention"].values)}


class PlainTuple(MSSA):
    def subspaces(self):
        return self.proj.weight.mT, self.num_heads


class Transposed24(MSSA):
    def subspaces(self):
        return Subspaces(self.proj.weight, self.num_heads)


class OtherCode(Sparsification):
    lambd = 0.1

    def forward(self, x):
        return 2 * self.tap_code(x.relu())


class NoPrice(Sparsification):
    def forward(self, x):
        return self.tap_code(x.relu())


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        ((NoTap(), None), "Block has tap_w, but forward does not call it"),
        ((WrongSums(24, 3), None), "Block: the rows of the map 'attention' must sum to 1"),
        ((PlainTuple(24, 3), None), r"Block.subspaces\(\) must return Subspaces\(U, num_heads\), not tuple"),
        ((Transposed24(24, 3), None), r"tap_w of Block must pass x U for the U of subspaces\(\)"),
        ((MSSA(24, 3), OtherCode()), "Block.returns_code is True, but its output is not the output of tap_code"),
        ((MSSA(24, 3), NoPrice()), "Block: lambd must be a number if there is a code"),
    ],
)
def test_what_a_layer_lacks_is_named(operators, message):
    with pytest.raises(AssertionError, match=message):
        check_layer(Block(24, *operators), 24)


@pytest.mark.parametrize("task", [lambda part: ImageClassifier(part, LinearHead(24, 2)), MaskedAutoencoder])
def test_a_task_refuses_a_plain_module_as_its_backbone(task):
    with pytest.raises(ValueError, match="Flatten is no backbone: let it inherit from crate_mm.models.Backbone"):
        task(nn.Flatten())


@pytest.mark.parametrize("name", Backbone.CONTRACT)
def test_an_attribute_that_the_contract_would_hide_is_refused(name):
    model = Good()
    with pytest.raises(AttributeError, match=f"Good.{name} is defined by crate_mm.models.Backbone: give the attribute"):
        setattr(model, name, nn.ModuleList())


class WithPositions(Good):
    """It has no check of the image's size, and fails on another one."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, 6, 24))

    def forward(self, images):
        return super().forward(images) + self.positions


def test_a_backbone_that_fails_on_another_size_says_so():
    backbone = WithPositions()
    assert backbone(torch.zeros(1, 3, 16, 24)).shape == (1, 6, 24)
    with pytest.raises(
        ValueError, match=r"WithPositions takes inputs of shape \(B, 3, 16, 24\), got \(B, 3, 24, 24\), on"
    ):
        backbone(torch.zeros(1, 3, 24, 24))
    assert Good()(torch.zeros(1, 3, 24, 24)).shape == (1, 9, 24)  # which works, and is not refused
    backbone.positions.data = torch.zeros(1, 5, 24)
    with pytest.raises(RuntimeError, match="must match the size"):  # a mistake, whatever the image
        backbone(torch.zeros(1, 3, 16, 24))


class Pictures(SampleDataset):
    spec = {"inputs": IMAGE}  # noqa: RUF012

    def __init__(self, *shape):
        self.shape = shape

    def __len__(self):
        return 3

    def __getitem__(self, index):
        if not self.shape:
            raise OSError("unreadable")
        torch.rand(1), np.random.rand(), random.random()
        return {"inputs": torch.zeros(self.shape, dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("backbone", "shape", "message"),
    [
        (dict(type="CRATE"), (3, 16, 24), None),
        (
            dict(type="CRATE"),
            (3, 24, 16),
            "val_dataloader gives images of 3 x 24 x 16 .*, the backbone CRATE takes 3 x 16",
        ),
        (dict(type="CRATE"), (1, 16, 24), r"add dict\(type='RGB'\) to its transforms, or set in_channels"),
        (dict(type="CRATE", in_channels=1), (3, 16, 24), r"add dict\(type='Grayscale'\)"),
        (dict(type="ToST"), (3, 32, 40), None),  # which takes any size
        (dict(type="CRATE"), (), None),  # which the run reports
    ],
)
def test_images_of_another_shape_are_refused_before_the_first_step(backbone, shape, message):
    mean = (0.5,) * backbone.get("in_channels", 3)
    task = ImageClassifier({**SMALL, **backbone}, LinearHead(24, 2), dict(mean=mean, std=mean))
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        task.check_data(Pictures(*shape), "val")
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())
