"""Use every name that the READMEs import, and assert its public types. mypy checks this file; it never runs."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import assert_type

from crate_mm import Predictor, draw, from_official, get_model, init_model, layer_measures, list_models, report
from crate_mm.analysis.cost import count_complexity
from crate_mm.analysis.figures import Figure, FigureInput, FigureOutput, InlineFigure
from crate_mm.analysis.figures.base import run_batches
from crate_mm.analysis.gather import measure_layers
from crate_mm.analysis.measures import coding_rate, nonzero_fraction, subspace_coding_rate
from crate_mm.analysis.table import Settings, measure
from crate_mm.analysis.taps import capture
from crate_mm.checkpoints import CheckpointError, open_checkpoint
from crate_mm.config import load_config
from crate_mm.datasets import Digits, SampleDataset
from crate_mm.engine import Runner
from crate_mm.engine import load_config as same_load_config
from crate_mm.evaluation import ClassificationMetric, extract_features
from crate_mm.extras.average import average, save
from crate_mm.extras.bench import bench
from crate_mm.extras.curves import Point, read_run, schedule
from crate_mm.extras.doctor import check_machine
from crate_mm.extras.sample_preview import SamplePreview
from crate_mm.hub import HubModel
from crate_mm.inference.features import extract
from crate_mm.inference.generate import TextGenerator
from crate_mm.models import CRATE, Backbone, CausalToST, ImageClassifier, InputSpec, Task
from crate_mm.models import TokenLayout as SameTokenLayout
from crate_mm.models.families.block import build_block
from crate_mm.models.layers import Block, Compression, Layer, Map, Sparsification, Subspaces, TokenLayout
from crate_mm.models.official import Argument, Official, classifier
from crate_mm.models.tasks.distillation import rate_distillation_loss
from crate_mm.registry import BACKBONES, DATASETS, FIGURES, LAYERS, METRICS, MODELS
from crate_mm.testing import check_backbone, check_layer, check_task


def models(images: Tensor) -> Tensor:
    assert_type(list_models(pretrained=True), list[str])
    assert_type(get_model("crate_tiny", num_classes=5, img_size=32, pretrained="weights.pth"), ImageClassifier)
    assert_type(from_official(Path("official.pth"), num_heads=6), Task)
    model = init_model(None, "crate_base.pth", device=torch.device("cpu"))
    assert_type(model, Task)
    assert_type(model.class_names, list[str] | None)
    predict = Predictor(model, topk=3, dtype="bfloat16")
    for prediction in predict.stream(["cat.jpg"], workers=2):
        assert_type(prediction.reason, str)
        assert_type(prediction.pixels, Tensor | None)
    assert_type(predict.class_names, list[str])
    generate = TextGenerator("text.pth", tokenizer=Path("words.json"))
    assert_type(generate("def ", max_tokens=20, temperature=0.7, seed=0), str)
    HubModel("epoch_40.pth", licence="mit").push_to_hub("me/crate")
    check_task(model, {"inputs": images})
    assert_type(rate_distillation_loss(images, images, 2, group_size="batch"), tuple[Tensor, Tensor, Tensor])
    logits: Tensor = model(**model.data_preprocessor({"inputs": images}))
    return logits


def analysis(model: ImageClassifier, images: Tensor, subspaces: Subspaces) -> None:
    with measure_layers(model) as measures:
        assert_type(measures.means("rc_half"), list[float])
    with capture(model, ("tap_out",), layers=[0, -1]) as tensors:
        z = tensors["tap_out"][0]
    assert_type(subspace_coding_rate(z @ subspaces.U, subspaces.num_heads), Tensor)
    assert_type(coding_rate(z) + nonzero_fraction(z), Tensor)
    assert_type(count_complexity(model, images).parameters, int)
    assert_type(extract(model, [Path("cat.jpg")]).rows, Tensor)
    extract_features(model, [])
    assert isinstance(draw("pca", model, "photos"), InlineFigure)
    assert_type(layer_measures(model, Digits("test")).means("r_out"), list[float])
    assert_type(report({"mine": model}, "photos", "report.html"), Path)


@measure("length", "mean length of the tokens", "Mean length", tap="tap_out")
def length(z: Tensor, layer: Layer, settings: Settings) -> Tensor:
    return z.square().sum(-1).sqrt().mean(-1)


def files() -> None:
    cfg = load_config("debug", {"train_cfg.max_epochs": 1})
    Runner(same_load_config(cfg)).train()
    try:
        assert_type(open_checkpoint("epoch_1.pth").weights, dict[str, Tensor])
    except CheckpointError as error:
        assert_type(error.args, tuple[Any, ...])
    mean, notes = average(["epoch_1.pth", "epoch_2.pth"])
    assert_type(notes, list[str])
    save(mean, "mean.pth")
    assert_type(read_run("work_dirs/debug"), dict[str, list[Point]])
    assert_type(bench(cfg, "training", seconds=0.1).images_per_second, float)
    for level, topic, text in check_machine():
        assert_type((level, topic, text), tuple[str, str, str])
    assert_type(schedule(cfg).steps, int)
    assert_type([sample.path for sample in SamplePreview(cfg).epoch_samples(8)], list[str])


@LAYERS.register_module()
class Identity(Compression):
    def forward(self, x: Tensor) -> Tensor:
        tapped: Tensor = self.tap_w(x)
        return tapped

    def subspaces(self) -> Subspaces | None:
        return None

    def maps(self, w: Tensor, layout: TokenLayout | None = None) -> dict[str, Map]:
        return {"attention": Map(w)}


@LAYERS.register_module()
class Threshold(Sparsification):
    def forward(self, x: Tensor) -> Tensor:
        code: Tensor = self.tap_code(x.relu())
        return code


@BACKBONES.register_module()
class MyBackbone(Backbone):
    official = Official(
        source="the other code",
        signs=("stem.weight",),
        key_map=((r"stem\.(.*)", r"backbone.stem.\1"),),
        shapes={"stem.weight": "width channels _ _"},
        arguments={"num_heads": Argument(4, "{} heads")},
        model=lambda s: classifier({"type": "MyBackbone"}, s.num_classes, pool="mean"),
    )
    embed_dim = 24

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(channels=3, size=(32, 32))

    def layout(self, inputs: Tensor) -> SameTokenLayout:
        return TokenLayout(prefix=0, rows=4, columns=4)

    def forward(self, inputs: Tensor) -> Tensor:
        assert_type(build_block(24, 3, compress={"type": "Identity"}, sparsify=None), Block)
        return inputs.flatten(2).mT


@FIGURES.register_module()
class MyFigure(Figure):
    def run(self, subjects: list[FigureInput], options: argparse.Namespace) -> FigureOutput:
        run_batches(subjects[0].model, subjects[0].batches)
        raise NotImplementedError


def continued(backbone: CausalToST, ids: Tensor) -> None:
    cache = backbone.new_cache()
    assert_type(backbone.logits(backbone(ids, cache)), Tensor)
    assert_type(cache.length, int)


def parts(backbone: CRATE, layer: Layer) -> None:
    check_backbone(backbone)
    check_layer(layer, embed_dim=24)
    for registry in (DATASETS, METRICS, MODELS):
        assert_type(registry.names(), list[str])
    assert issubclass(SampleDataset, object)
    ClassificationMetric()
