"""A model card, as the Hub shows it, from what a published model and its ``result.json`` say."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .checkpoints import Checkpoint, CheckpointError
from .engine.results import RESULT_FILE, load_result, model_name
from .untrusted import shown, without_secrets

# Figures of a result.json, and what the Hub calls them.
METRICS = {"top1": ("accuracy", "top-1 accuracy, %"), "top5": ("top_5_accuracy", "top-5 accuracy, %")}
FACTS = {
    "kind": "training",
    "dataset": "data",
    "epochs": "epochs",
    "global_batch_size": "batch",
    "seed": "seed",
    "parameters": "parameters",
    "flops": "multiply-adds, one sample",
    "img_size": "image, pixels",
    "wall_time_s": "time, s",
    "device": "device",
    "date": "date",
}


def read_result(path: str | Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """A ``result.json``; raise ``CheckpointError`` where it is none, or of another run than the checkpoint."""
    try:
        result = load_result(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{shown(path)} is no {RESULT_FILE} of a run: {shown(error)}") from None
    if result.get("run") != checkpoint.run:
        raise CheckpointError(f"{shown(path)} is of another run than {checkpoint.path}: it would tell other figures")
    return result


def figures_of(result: dict[str, Any], checkpoint: Checkpoint) -> dict[str, float]:
    """What a result says that a checkpoint reached: those of its epoch, or of a test of it."""
    epoch, kept = checkpoint.meta.get("epoch"), [result.get("best"), result.get("last")]
    kept = [figures for figures in kept if isinstance(figures, dict)]
    if "checkpoint" in result:  # tools/test.py wrote it
        same = Path(str(result["checkpoint"])).name == Path(checkpoint.path).name
        found = kept[-1] if kept and same else {}
    else:
        found = next((figures for figures in kept if epoch is not None and figures.get("epoch") == epoch), {})
    return as_figures(found)


def as_figures(metrics: Any) -> dict[str, float]:
    """The numbers among metrics, without the prefix of a task's own, and without the epoch that they are of."""
    told = metrics.items() if isinstance(metrics, dict) else ()
    return {key.removeprefix("eval/"): n for key, n in told if type(n) in (int, float) and key != "epoch"}


def write_card(
    about: dict[str, Any], result: dict[str, Any], figures: dict[str, float], licence: str | None, repo: str | None
) -> ModelCard:
    """The card of a published model.

    Args:
        about: what ``publish`` wrote beside the weights.
        result: of its ``result.json``, or nothing.
        figures: what the model reached, as ``figures_of`` returns them.
        licence: as the Hub names it ('mit'), or None.
        repo: where it goes, 'owner/name', or None.
    """
    model, classifies = about["model"], about["model"].get("type") == "ImageClassifier"
    backbone = model.get("backbone") or {}
    kind = shown(model_name(backbone) if backbone else str(model.get("type")).lower())
    dataset = shown(result.get("dataset") or "")
    task = "image-classification" if classifies else "image-feature-extraction"
    measured = [
        EvalResult(task, dataset, dataset, METRICS[name][0], value, metric_name=METRICS[name][1])
        for name, value in figures.items()
        if name in METRICS and dataset
    ]
    told = {"model_name": kind, "eval_results": measured} if measured else {}
    tags = ["white-box", "crate", str(backbone.get("type", "")).lower()]
    data = ModelCardData(
        library_name="crate_mm", license=licence, pipeline_tag=task, tags=[tag for tag in tags if tag], **told
    )
    facts = {"model": kind, **{FACTS[key]: result[key] for key in FACTS if result.get(key) is not None}}
    if about.get("classes"):
        facts["classes"] = len(about["classes"])
    source = about.get("translated_from") or about.get("initialized_from")
    facts |= {"started from": Path(str(source)).name} if source else {}
    facts |= {"crate_mm": about["version"], "SHA-256 of the weights": about["sha256"]}
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items()]
    reached = [f"| {_cell(METRICS.get(name, (0, name))[1])} | {value:.6g} |" for name, value in figures.items()]
    place = repr(repo or "owner/name")
    text = [
        f"# {_cell(repo or kind)}",
        f"{_cell(kind)}{f', trained on {_cell(dataset)}' if dataset else ''}, with crate_mm. `config.json` is data: "
        "the model's description, its classes, its normalisation and the transforms of its test. Nothing of it is run.",
        "## Use",
        f"```python\nfrom crate_mm import Predictor\nfrom crate_mm.hub import HubModel\n\n"
        f'model = HubModel.from_pretrained({place}).model\nPredictor(model)(["image.jpg"])\n```'
        if classifies
        else f"```python\nfrom crate_mm.hub import HubModel\n\nmodel = HubModel.from_pretrained({place}).model\n```",
        "## Figures",
        "\n".join(["| figure | value |", "|---|---|", *reached]) if reached else "No figure of these weights is known.",
        "## Training",
        "\n".join(["| what | |", "|---|---|", *rows]),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(text) + "\n")


def _cell(value: Any) -> str:
    """A value in a card's table or text; what the page would take for its own code is written otherwise."""
    if isinstance(value, list):
        value = " x ".join(map(str, value))
    if isinstance(value, int) and not isinstance(value, bool):
        value = f"{value:,}"
    return "".join(f"&#{ord(c)};" if c in "|<>&`[]*~\\" else c for c in shown(without_secrets(value)))
