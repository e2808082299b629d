"""A model card, as the Hub shows it, from what a published model and its ``result.json`` say."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ...checkpoints import Checkpoint, CheckpointError
from ...engine.checkpointing.results import RESULT_FILE, load_result, model_name
from ...io.untrusted import sanitized, without_secrets
from ...registry import suggest

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


# What the Hub knows, of its page "Licenses".
LICENCES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
""".split()  # noqa: SIM905  a list would have a line for each


def card_licence(licence: str | None) -> dict[str, str]:
    """The entries of a card that state a licence; none for None.

    Args:
        licence: one of ``LICENCES``, in capitals or not, or 'other: ' and the name of another one.

    Raises:
        ValueError: it is neither.
    """
    if licence is None:
        return {}
    known, _, name = licence.partition(":")
    if known.strip().lower() == "other" and name.strip():
        return {"license": "other", "license_name": sanitized(name.strip())}
    if licence.lower() not in LICENCES:
        raise ValueError(
            f"the Hub knows no licence {sanitized(licence)}: {suggest(licence.lower(), LICENCES)}; another one is written "
            "'other: ' and its name"
        )
    return {"license": licence.lower()}


def read_result(path: str | Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """A ``result.json``; raise ``CheckpointError`` where it is none, or of another run than the checkpoint."""
    try:
        result = load_result(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{sanitized(path)} is no {RESULT_FILE} of a run: {sanitized(error)}") from None
    if result.get("run") != checkpoint.run:
        raise CheckpointError(
            f"{sanitized(path)} is of another run than {checkpoint.path}: it would tell other figures"
        )
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
        licence: as ``card_licence`` takes it.
        repo: where it goes, 'owner/name', or None.
    """
    model, classifies = about["model"], about["model"].get("type") == "ImageClassifier"
    backbone = model.get("backbone") or {}
    kind = sanitized(model_name(backbone) if backbone else str(model.get("type")).lower())
    dataset = sanitized(result.get("dataset") or "")
    task = "image-classification" if classifies else "image-feature-extraction"
    measured = [
        EvalResult(task, dataset, dataset, METRICS[name][0], value, metric_name=METRICS[name][1])
        for name, value in figures.items()
        if name in METRICS and dataset
    ]
    told = {"model_name": kind, "eval_results": measured} if measured else {}
    tags = ["white-box", "crate", str(backbone.get("type", "")).lower()]
    data = ModelCardData(
        library_name="crate_mm", pipeline_tag=task, tags=[tag for tag in tags if tag], **card_licence(licence), **told
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
    return "".join(f"&#{ord(c)};" if c in "|<>&`[]*~\\" else c for c in sanitized(without_secrets(value)))
