"""Write the Hub's model card of a published model from its manifest and its ``result.json``."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ...engine.checkpointing.results import model_name
from ...io.untrusted import sanitized, without_secrets
from ...registry import suggest

# Metric of a result.json -> (metric type on the Hub, title in the card).
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


# From the Hub's page "Licenses".
LICENCES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0
openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other
""".split()  # noqa: SIM905  a list would take one line per license


def card_licence(licence: str | None) -> dict[str, str]:
    """Return the card's entries for a license; an empty dict for None.

    Args:
        licence: one of ``LICENCES``, in upper or lower case, or 'other: ' and a name.

    Raises:
        ValueError: any other license.
    """
    if licence is None:
        return {}
    known, _, name = licence.partition(":")
    if known.strip().lower() == "other" and name.strip():
        return {"license": "other", "license_name": sanitized(name.strip())}
    if licence.lower() not in LICENCES:
        raise ValueError(
            f"the Hub has no license {sanitized(licence)}: {suggest(licence.lower(), LICENCES)}; write any other "
            "license as 'other: <name>'"
        )
    return {"license": licence.lower()}


def write_card(
    manifest: dict[str, Any], result: dict[str, Any], metrics: dict[str, float], licence: str | None, repo: str | None
) -> ModelCard:
    """Return the card of a published model.

    Args:
        manifest: from ``publish``.
        result: content of the model's ``result.json``, or an empty dict.
        metrics: from ``checkpoint_metrics``.
        licence: argument of ``card_licence``.
        repo: target repository, 'owner/name', or None.
    """
    model, classifies = manifest["model"], manifest["model"].get("type") == "ImageClassifier"
    backbone = model.get("backbone") or {}
    kind = sanitized(model_name(backbone) if backbone else str(model.get("type")).lower())
    dataset = sanitized(result.get("dataset") or "")
    task = "image-classification" if classifies else "image-feature-extraction"
    measured = [
        EvalResult(task, dataset, dataset, METRICS[name][0], value, metric_name=METRICS[name][1])
        for name, value in metrics.items()
        if name in METRICS and dataset
    ]
    evaluation = {"model_name": kind, "eval_results": measured} if measured else {}
    tags = ["white-box", "crate", str(backbone.get("type", "")).lower()]
    data = ModelCardData(
        library_name="crate_mm",
        pipeline_tag=task,
        tags=[tag for tag in tags if tag],
        **card_licence(licence),
        **evaluation,
    )
    facts = {"model": kind, **{FACTS[key]: result[key] for key in FACTS if result.get(key) is not None}}
    if manifest.get("classes"):
        facts["classes"] = len(manifest["classes"])
    source = manifest.get("translated_from") or manifest.get("initialized_from")
    facts |= {"started from": Path(str(source)).name} if source else {}
    facts |= {"crate_mm": manifest["version"], "SHA-256 of the weights": manifest["sha256"]}
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items()]
    scores = [f"| {_cell(METRICS.get(name, (0, name))[1])} | {value:.6g} |" for name, value in metrics.items()]
    address = repr(repo or "owner/name")
    text = [
        f"# {_cell(repo or kind)}",
        f"{_cell(kind)}{f', trained on {_cell(dataset)}' if dataset else ''}, with crate_mm. `config.json` is plain "
        "data: model config, class names, normalization and test transforms. No code in it is executed.",
        "## Use",
        f"```python\nfrom crate_mm import Predictor\nfrom crate_mm.hub import HubModel\n\n"
        f'model = HubModel.from_pretrained({address}).model\nPredictor(model)(["image.jpg"])\n```'
        if classifies
        else f"```python\nfrom crate_mm.hub import HubModel\n\nmodel = HubModel.from_pretrained({address}).model\n```",
        "## Metrics",
        "\n".join(["| metric | value |", "|---|---|", *scores]) if scores else "No metrics of these weights are known.",
        "## Training",
        "\n".join(["| property | value |", "|---|---|", *rows]),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(text) + "\n")


def _cell(value: Any) -> str:
    """Return a value for a card's table or text, with Markdown and HTML escaped."""
    if isinstance(value, list):
        value = " x ".join(map(str, value))
    if isinstance(value, int) and not isinstance(value, bool):
        value = f"{value:,}"
    return "".join(f"&#{ord(c)};" if c in "|<>&`[]*~\\" else c for c in sanitized(without_secrets(value)))
