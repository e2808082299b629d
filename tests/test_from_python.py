"""Figures, measures and the report from Python, as a notebook uses them."""

import copy
import io
import json
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from crate_mm import Predictor, draw, init_model, layer_measures, report
from crate_mm.analysis.figures import InlineFigure
from crate_mm.analysis.gather import LayerMeasures, measure_layers
from crate_mm.datasets import ClassificationDataset, Digits
from crate_mm.io.progress import track
from crate_mm.registry import FIGURES
from tests import dataset_formats

DIGITS = Digits("test")
IMAGES = [DIGITS[number][0] for number in range(5)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return init_model("debug")


@pytest.fixture(scope="module")
def measures(model):
    return layer_measures(model, IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "objects" else ())
        for name in sorted({*FIGURES.names()} - {"reconstruct", "masks"})
    ],
)
def test_a_figure_is_drawn_without_pyplot(name, model, tmp_path):
    images = {"attention": IMAGES[0], "features": DIGITS, "segments": (), "subspaces": ()}.get(name, IMAGES)
    options = {}
    if name == "segments":
        dataset_formats.voc(tmp_path, {"one": np.eye(20, 30, dtype=np.uint8)})
        options = {"voc": tmp_path}
    figure = draw(name, model.train(), images, **options)
    assert isinstance(figure, InlineFigure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()  # pyplot does not hold it
    assert model.training  # as it was
    model.eval()


@pytest.mark.slow
def test_what_is_drawn_is_what_analyze_draws(model, run_tool, tmp_path):
    torch.save({"meta": {}, "state_dict": model.state_dict()}, tmp_path / "weights.pth")
    done = run_tool("analyze", "layers", "debug", tmp_path / "weights.pth", "--num-images", 50, "--out", tmp_path)
    assert done.code == 0, done.output
    written = [line.split(",") for line in (tmp_path / "layers.csv").read_text().splitlines()[1:]]
    loader = DataLoader(ClassificationDataset(DIGITS), 64)
    for images in (DIGITS, loader, (DIGITS[number][0] for number in range(len(DIGITS)))):
        *_, line = draw("layers", {"a": model, "b": model}, images, num_images=50, measures=["sparsity"]).axes[0].lines
        assert line.get_ydata() == pytest.approx([float(row[-3]) for row in written if row[1] == "sparsity"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "options", "sentence"),
    [
        (("attentoin",), {}, "unknown figure 'attentoin': did you mean attention?"),
        (("attention",), {}, "expected one image, got 5: attention draws a figure for each image"),
        (("pca",), {"colour": 1}, "pca has no option 'colour': its options are foreground"),
        (("features",), {"num_images": "many"}, "features: argument --num-images: invalid int value: 'many'"),
    ],
)
def test_a_mistake_gets_a_sentence(args, options, sentence, model):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        draw(*args, model, IMAGES, **options)


def test_an_image_that_cannot_be_read_is_named(model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read: cannot identify"):
        draw("pca", model, [IMAGES[0], tmp_path / "broken.png"])


def test_measures_of_images_are_those_of_their_batches(model, measures):
    pixels = torch.stack([torch.from_numpy(np.array(image))[None] for image in IMAGES])
    with measure_layers(model) as expected, torch.inference_mode():
        model(**model.data_preprocessor({"inputs": pixels}))
    assert measures.rows() == expected.rows()
    header, names, *lines = repr(measures).splitlines()
    assert header == "LayerMeasures of 5 samples, means"
    assert names.split() == ["layer", "rc_half", "sparsity", "rc_z", "rc_in", "rc_out", "r_out", "objective", "snr_out"]
    assert [line.split()[:2] for line in lines] == [
        [str(n + 1), f"{v:.4g}"] for n, v in enumerate(measures.means("rc_half"))
    ]
    assert repr(LayerMeasures()) == "LayerMeasures: nothing measured yet"


def test_measures_are_plotted(measures):
    figure = measures.plot("sparsity")
    assert list(figure.axes[0].lines[0].get_ydata()) == measures.means("sparsity")
    assert len(measures.plot().axes) == 8
    with pytest.raises(ValueError, match="^active was not measured: choose from rc_half, sparsity"):
        measures.plot("active")


def test_measures_as_a_frame(measures, monkeypatch):
    pandas = pytest.importorskip("pandas")
    frame = measures.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame[frame.measure == "rc_half"]["mean"]) == measures.means("rc_half")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"^to_frame\(\) needs pandas, which is not installed: pip install pandas$"):
        measures.to_frame()


def test_a_prediction_is_a_named_pair(model):
    (classes,) = Predictor(model, class_names=list("abcdefghij"), topk=2)(IMAGES[0])
    best = classes[0]
    label, score = best
    assert (best.label, best.score, "abcdefghij"[best.index]) == (label, score, label) == (*best, label)
    assert repr(classes) == "[" + ", ".join(f"{name!r} {100 * value:.1f} %" for name, value in classes) + "]"
    assert json.loads(json.dumps(best)) == [label, score]
    for twin in (copy.deepcopy(best), pickle.loads(pickle.dumps(best))):
        assert (twin, twin.index) == (best, best.index)
    assert repr(next(Predictor(model, topk=1).stream(["none.png"]))).startswith(
        "Prediction('none.png': cannot be read: "
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "drawn"), [(Terminal, True), (io.StringIO, False)])
def test_progress_is_shown_on_a_terminal_alone(stream, drawn, monkeypatch):
    monkeypatch.setattr("sys.stderr", stream())
    monkeypatch.setattr("crate_mm.io.progress.DELAY", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    assert list(track([1, 2, 3], "counting")) == [1, 2, 3]
    assert ("counting" in sys.stderr.getvalue()) is drawn
    assert ("1/3" in sys.stderr.getvalue()) is drawn


@pytest.mark.slow
def test_the_report_is_the_commands(model, run_tool, tmp_path):
    torch.save({"meta": {}, "state_dict": model.state_dict()}, tmp_path / "weights.pth")
    few = ("--num-images", 10, "--shown", 2)
    done = run_tool("report", "debug", tmp_path / "weights.pth", "--out", tmp_path / "a.html", *few)
    assert done.code == 0, done.output
    assert report({"weights": model}, DIGITS, tmp_path / "b.html", num_images=10, shown=2) == tmp_path / "b.html"
    pages = [(tmp_path / name).read_text() for name in ("a.html", "b.html")]
    command, python = (json.loads(re.search(r'id="report-data">(.*?)</script>', page, re.S)[1]) for page in pages)
    for data in (command, python):
        data["run"], data["models"][0]["run"], data["datas"][0]["label"] = None, None, None
    assert python == command
    with pytest.raises(ValueError, match="cannot write .*: its folder does not exist"):
        report(model, DIGITS, tmp_path / "none" / "page.html")
    with pytest.raises(ValueError, match="weights_megabytes must be at least 0, got nan"):
        report(model, DIGITS, tmp_path / "page.html", weights_megabytes=float("nan"))
