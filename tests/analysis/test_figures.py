"""Every figure on every family, and on the family's ablations: it is drawn, or it is refused in one sentence."""

import argparse
import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure as Picture

from crate_mm.analysis.figures import FigureInput, figure_style, save
from crate_mm.analysis.figures.layers import plot_layers
from crate_mm.analysis.figures.overlay import effective_tokens, over_gray, scale_end, spread_of
from crate_mm.analysis.figures.style import columns_of, sheet
from crate_mm.analysis.gather import LayerRow, defined_measures
from crate_mm.analysis.measures import coding_rate
from crate_mm.analysis.table import MEASURES
from crate_mm.analysis.taps import capture
from crate_mm.models import CRATE, ImageClassifier, LanguageModel
from crate_mm.models.families.causal import CausalBackbone
from crate_mm.models.layers import TokenLayout
from crate_mm.models.tasks.heads import LinearHead
from crate_mm.registry import BACKBONES, FIGURES, head_for
from tests import dataset_formats

MICRO = dict(embed_dim=48, depth=2, num_heads=3)
SIZE = dict(arch=MICRO, img_size=(16, 24), patch_size=8)
BACKBONES.names()  # registers them
OURS = {name: kind for name, kind in BACKBONES.module_dict.items() if kind.__module__.startswith("crate_mm.")}
TEXT = [name for name, kind in OURS.items() if issubclass(kind, CausalBackbone)]
FAMILIES = {name: dict(type=name) for name in OURS if name not in TEXT}
MODELS_LOOKED_AT = {
    **FAMILIES,
    "tied": dict(type="CRATE", compress=dict(type="MSSA", tied=True)),
    "softmax attention": dict(type="CRATE", compress=dict(type="SoftmaxAttention")),
    "MLP": dict(type="CRATE", sparsify=dict(type="MLP"), residual=True),
    "coupled": dict(type="CRATEAlpha", decoupled=False),
    "one step": dict(type="CRATEAlpha", overcomplete=False, decoupled=False),
}
# Which measures a model has beside 'r_out'.
HAS = {
    "CRATE": {"rc_half", "rc_z", "rc_in", "rc_out", "snr_out", "sparsity", "objective"},
    "CRATEMAE": {"rc_half", "rc_z", "rc_in", "rc_out", "snr_out", "sparsity", "objective"},
    "tied": {"rc_half", "rc_z", "rc_in", "rc_out", "snr_out", "sparsity", "objective"},
    "CRATEAlpha": {"rc_half", "rc_z", "rc_in", "rc_out", "snr_out", "sparsity", "sparsity_step1"},
    "coupled": {"rc_half", "rc_z", "rc_in", "rc_out", "snr_out", "sparsity", "sparsity_step1"},
    "one step": {"rc_half", "rc_z", "rc_in", "rc_out", "snr_out", "sparsity"},
    "CBT": {"rc_half", "rc_z", "rc_in", "rc_out", "snr_out", "sparsity", "objective"},
    "AoT": {"rc_half", "rc_z", "rc_in", "rc_out", "snr_out"},
    "ToST": {"rc_half", "rc_z", "rc_in", "rc_out", "snr_out", "active"},
    "softmax attention": {"sparsity"},
    "MLP": {"rc_half", "rc_z", "rc_in", "rc_out", "snr_out", "active"},
    "ViT": {"active"},
}
# What is refused, and the sentence.
MEMBERSHIP = "ToST has no attention map: the map 'membership' of TSSA is groups x tokens, not tokens x tokens"
REFUSED = {
    ("attention", "ToST"): MEMBERSHIP,
    ("segments", "ToST"): MEMBERSHIP,
    ("subspaces", "ViT"): "ViT has no subspaces, so R^c is not defined",
    ("subspaces", "softmax attention"): "CRATE has no subspaces, so R^c is not defined",
    ("reconstruct", "CRATE"): "ImageClassifier does not reconstruct patches: use a MaskedAutoencoder",
    ("masks", "CRATE"): "ImageClassifier predicts no masks: use a Segmentation",
}


AT_EACH_EDIT = {"CRATE", "ToST", "ViT"}
PAIRS = [
    pytest.param(figure, name, marks=[] if name in AT_EACH_EDIT else pytest.mark.slow)
    for figure in sorted(set(FIGURES.names()) - {"layers", "masks", "reconstruct"})  # these have tests of their own
    for name in FAMILIES
]
PAIRS += [(figure, "softmax attention") for figure in ("attention", "subspaces")]  # the only other compression
PAIRS += [(figure, "CRATE") for figure in ("masks", "reconstruct")]


def classifier(**backbone):
    torch.manual_seed(0)
    head = dict(type="LinearHead", num_classes=5, **head_for(backbone["type"]))
    return ImageClassifier({**SIZE, **backbone}, head).eval()


def images(count=4):
    return torch.randint(0, 256, (count, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def voc(tmp_path_factory):
    """A dataset in PASCAL VOC's layout, of one image."""
    folder, mask = tmp_path_factory.mktemp("voc"), np.zeros((20, 30), int)
    mask[5:15, 5:20] = 12
    dataset_formats.voc(folder, {"one": mask})
    return folder


def draw(name, model, inputs=None, **chosen):
    """Run a figure as the command line does, with its default options and those that are given."""
    figure, parser = FIGURES.build(dict(type=name)), argparse.ArgumentParser()
    figure.add_options(parser)
    options = argparse.Namespace(**{**vars(parser.parse_args([])), "layers": None, "seed": 0, **chosen})
    figure.choose(4, options)
    pixels = images()
    batch = dict(inputs=pixels, labels=torch.arange(4), sample_idx=torch.arange(4))
    if inputs is not None:
        batch = dict(inputs=inputs, labels=inputs)
    pictures = tuple(pixels.permute(0, 2, 3, 1).numpy())
    subject = FigureInput("test", model, [batch], pictures, tuple(f"{i}.png" for i in range(4)), tuple("abcde"))
    drawn = figure.run([subject], options)
    assert drawn.pictures
    assert all(isinstance(picture, Picture) for picture in drawn.pictures.values())
    return drawn


def finite(contents):
    if isinstance(contents, dict):
        return all(map(finite, contents.values()))
    if isinstance(contents, (list, tuple)):
        return all(map(finite, contents))
    if isinstance(contents, str):
        return True
    return np.asarray(contents).dtype.kind in "US" or bool(np.isfinite(np.asarray(contents)).all())


@pytest.mark.parametrize(("name", "label"), PAIRS)
def test_a_figure_is_drawn_or_refused(name, label, voc):
    model = classifier(**MODELS_LOOKED_AT[label])
    chosen = {"segments": dict(voc=str(voc)), "objects": dict(num_images=3)}.get(name, {})
    if (name, label) in REFUSED:
        with pytest.raises(ValueError, match=f"^{re.escape(REFUSED[name, label])}$"):
            draw(name, model, **chosen)
        return
    assert finite(draw(name, model, **chosen).numbers)


@pytest.mark.parametrize(
    "label", [name if name in AT_EACH_EDIT else pytest.param(name, marks=pytest.mark.slow) for name in MODELS_LOOKED_AT]
)
def test_every_measure_is_drawn_or_refused(label):
    model = classifier(**MODELS_LOOKED_AT[label])
    defined = HAS[label] | {"r_out"}
    assert set(defined_measures(model)) == defined
    drawn = draw("layers", model, measures=list(MEASURES))
    assert sorted(row[1] for row in drawn.numbers["layers.csv"][1:]) == sorted([*defined] * 2)
    assert len(drawn.pictures["layers"].axes) == len(defined)
    for measure in MEASURES.keys() - defined:
        with pytest.raises(ValueError, match=rf"has none of the measures {measure}: choose from .*r_out"):
            draw("layers", model, measures=[measure])


TEXT_MEASURES = {
    "CausalCRATE": {"rc_half", "rc_z", "rc_in", "rc_out", "snr_out", "sparsity", "objective"},
    "CausalAoT": {"rc_half", "rc_z", "rc_in", "rc_out", "snr_out"},
    "CausalToST": {"rc_half", "rc_z", "rc_in", "rc_out", "snr_out", "active"},
    "GPT2": {"active"},
}


@pytest.mark.parametrize("family", TEXT)
def test_a_language_model_is_measured_and_its_pictures_refused(family):
    torch.manual_seed(0)
    backbone = dict(type=family, arch=MICRO, vocab_size=29, context_length=16)
    model, ids = LanguageModel(backbone).eval(), torch.randint(29, (4, 16))
    assert set(defined_measures(model)) == TEXT_MEASURES[family] | {"r_out"}
    table = draw("layers", model, ids, measures=list(defined_measures(model))).numbers["layers.csv"][1:]
    with torch.no_grad(), capture(model, ("tap_out",)) as seen:
        model(ids)
    rates = [coding_rate(z, unit_length=True).mean().item() for z in seen["tap_out"]]
    assert [row[4] for row in table if row[1] == "r_out"] == pytest.approx(rates, rel=1e-6)
    assert finite(draw("tokens", model, ids).numbers)
    if TEXT_MEASURES[family] > {"rc_half"}:
        assert finite(draw("subspaces", model, ids).numbers)
    for name in ("attention", "pca", "reconstruct"):
        with pytest.raises(ValueError, match="takes no images|does not reconstruct patches|has no attention map"):
            draw(name, model, ids)


def test_the_sparsity_of_alphas_code_by_step():
    model = classifier(type="CRATEAlpha")
    table = draw("layers", model, measures=["sparsity_step1", "sparsity"]).numbers["layers.csv"]
    with torch.no_grad(), capture(model, ("tap_code1", "tap_code")) as seen:
        model(model.data_preprocessor.normalize(images()))
    for measure, tap in (("sparsity_step1", "tap_code1"), ("sparsity", "tap_code")):
        told = [row[4] for row in table if row[1] == measure]
        assert told == pytest.approx([(code != 0).float().mean().item() for code in seen[tap]], rel=1e-6)
        assert seen[tap][0].shape == (4, 7, 192)


def test_the_colours_of_pca_are_the_patches_of_tost():
    """All its tokens are patches: none is left out, and the grid is that of the images."""
    model = classifier(type="ToST")
    found = draw("pca", model).numbers["pca.npz"]
    assert found["colors"].shape == (4, 2, 3, 3)
    assert model.backbone.layout(images()) == (0, 2, 3)


def test_attention_needs_a_cls_token_in_the_layers():
    class WithoutCLS(CRATE):
        def layout(self, inputs):
            return TokenLayout(0, 2, 3)

    model = ImageClassifier(WithoutCLS(**SIZE), LinearHead(48, 5)).eval()
    with pytest.raises(ValueError, match="has no CLS token in its layers"):
        draw("attention", model)


def test_attention_is_drawn_on_one_scale_with_the_mean_of_the_heads():
    model = classifier(type="CRATE")
    found = draw("attention", model)
    maps, end = found.numbers["attention.npz"], 2.0  # an untrained model attends nearly uniformly
    picture = found.pictures["attention_0_0"]
    photo, *panels = [axes for axes in picture.axes if axes.images]
    np.testing.assert_array_equal(photo.images[0].get_array(), images()[0].permute(1, 2, 0))
    assert len(panels) == 2 * (1 + 3)  # layers, the mean and the heads
    for layer in (1, 2):
        heads = torch.from_numpy(maps[f"0_layer_{layer}"])
        for axes, true in zip(panels[4 * (layer - 1) : 4 * layer], [heads.mean(0), *heads], strict=True):
            shown = over_gray(photo.images[0].get_array(), 7 * true, end)
            np.testing.assert_allclose(axes.images[0].get_array(), shown)
            assert axes.get_xlabel() == f"{effective_tokens(true):.1f} of 7"
    (bar,) = [axes for axes in picture.axes if not axes.images and axes not in panels and axes.get_yticklabels()]
    assert [text.get_text() for text in bar.get_yticklabels()] == ["0\u00d7", "uniform", "2\u00d7"]
    assert found.note == ""
    model.head.pool = "mean"
    assert "predicts from the mean of all tokens" in draw("attention", model, interpolation="bilinear").note


def test_representatives_are_drawn_where_their_parts_of_the_image_lie():
    model = classifier(type="CRATE", compress=dict(type="CBSA", side=2))
    output = draw("attention", model, representatives=True)
    rows = [output.numbers["attention.npz"][f"0_representatives_row_{row}"] for row in (1, 2)]
    with torch.no_grad(), capture(model, ("tap_w",)) as seen:
        model(model.data_preprocessor.normalize(images()))
    compress = model.backbone.blocks[1].compress
    expected = compress.maps(seen["tap_w"][1], model.backbone.layout(images()))["attention"].values[0].mean(0)
    np.testing.assert_allclose(np.stack(rows).reshape(4, 6), expected[:, 1:], rtol=1e-5)
    picture = output.pictures["attention_0_0"]
    assert "attention of 4 representatives, layer 2, mean of the heads" in picture.get_suptitle()
    assert len([axes for axes in picture.axes if axes.images]) == 1 + 2 * (1 + 2)
    for refused, layers, message in (
        (model, [0, 1], "--representatives uses one layer, got 2"),
        (classifier(type="CRATE"), [0], "layer 1 of CRATE has no representatives: use a model with CBSA"),
    ):
        with pytest.raises(ValueError, match=message):
            draw("attention", refused, representatives=True, layers=layers)


@pytest.mark.parametrize(
    ("values", "tokens", "end"),
    [
        ([1.0] * 9, 9, 2),
        ([0.1, 3.0], 17, 5),
        ([7.0], 6, 6),
        ([1.0] * 999 + [50.0], 64, 2),
        ([0.0], 1, 2),
        ([5.0], 17, 5),
    ],
)
def test_the_scale_of_attention_ends_at_a_round_number(values, tokens, end):
    assert scale_end([torch.tensor(values)], tokens) == end


def test_attention_over_gray_never_gets_darker_with_a_larger_value():
    for gray in (0, 90, 255):
        picture = np.full((1, 64, 3), gray, np.uint8)
        shown = over_gray(picture, torch.linspace(0, 2, 64)[None], 2.0)
        linear = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)
        assert (np.diff(linear[0] @ [0.2126, 0.7152, 0.0722]) > -1e-3).all()
        assert linear[0, -1].sum() > 3 * linear[0, 0].sum()
    uniform = over_gray(picture, torch.ones(1, 2), 2.0)
    np.testing.assert_array_equal(uniform, uniform[:1, :1].repeat(uniform.shape[1], 1).repeat(uniform.shape[0], 0))


def test_effective_tokens_count_the_class_token():
    assert effective_tokens(torch.full((16,), 1 / 17)) == pytest.approx(17, rel=1e-5)
    assert effective_tokens(torch.zeros(16)) == pytest.approx(1)
    assert effective_tokens(torch.eye(16)[0]) == pytest.approx(1)
    assert effective_tokens(torch.tensor([0.5, 0.0])) == pytest.approx(2)
    assert [spread_of(torch.full((n,), 1 / (n + 1))) for n in (2, 196)] == ["3.0 of 3", "197 of 197"]


def test_names_stand_below_the_pictures():
    panels = draw("pca", classifier(type="CRATE")).pictures["pca"].axes
    assert [axes.get_xlabel() for axes in panels if axes.get_xlabel()] == ["0.png", "1.png", "2.png", "3.png"]


@pytest.mark.slow
def test_a_papers_figure_has_its_width_and_its_fonts(tmp_path):
    with figure_style("paper"):
        assert sheet(8, 4).get_size_inches().tolist() == [5.5, 2.75]
    with figure_style("paper", 3.25, 6.0):
        picture = draw("layers", classifier(type="CRATE")).pictures["layers"]
        save(picture, tmp_path / "layers")
    written = (tmp_path / "layers.pdf").read_bytes()
    (box,) = set(re.findall(rb"/MediaBox \[ ?0 0 ([0-9.]+) ", written))
    assert float(box) == pytest.approx(72 * 3.25, abs=0.01)
    assert b"/FontFile2" in written  # TrueType, whole
    assert b"/Type3" not in written
    assert picture.axes[0].title.get_fontsize() == pytest.approx(6)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("poster",), "unknown style 'poster': choose screen, paper"),
        (("screen", 3.0), "width and font size apply only to the paper style: add --style paper"),
        (("paper", 0.0 + 1e-3), "the width must be from 1 to 40, got 0.001"),
        (("paper", None, 100.0), "the font size must be from 3 to 40, got 100"),
    ],
)
def test_a_style_that_is_none_is_refused(given, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"), figure_style(*given):
        pass


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (6, 6), (7, 4), (12, 6), (13, 5), (24, 6)])
def test_panels_fill_their_rows(count, columns):
    assert columns_of(count) == columns


@pytest.mark.parametrize("count", [1, 2, 3, 24])
def test_layer_axis_labels_are_layers(count):
    rows = [LayerRow("sparsity", layer, 0.5, 0.1, 8) for layer in range(1, count + 1)]
    figure = plot_layers({"a": rows}, ["sparsity"])
    figure.canvas.draw()
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    labels = [label.get_text() for label, at in zip(axes.get_xticklabels(), axes.get_xticks()) if low <= at <= high]
    layers = [int(label) for label in labels]
    assert layers == sorted(set(layers))
    assert set(layers) <= set(range(1, count + 1))
    assert count > 3 or set(range(1, count + 1)) <= set(layers)
