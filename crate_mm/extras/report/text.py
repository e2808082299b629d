"""The report page of language models: texts in place of images.

Shapes: B windows, N tokens of a window, K heads, V tokens of the vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...analysis.attention import no_attention
from ...analysis.table import MEASURES
from ...analysis.taps import find_layers, name_of, read_taps
from ...datasets.tokenizers import ByteTokenizer, Tokenizer, tokenizer_of
from ...io.untrusted import sanitized
from ...models.tasks.language import LanguageModel
from .collect import ReportDataset, ReportModel, ReportSettings, code_data, rate_bounds, zero_shares
from .pack import pack
from .running import running_model, why_not
from .stream import collect_stats

TOP_TOKENS = 6  # next tokens stored for each token of a shown window
FORMAT = 1  # version of the data, for readers of saved files


def collect_text(
    models: list[ReportModel], data: ReportDataset, settings: ReportSettings, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure language models on windows of a text and return the page's data.

    Args:
        models: tasks ``LanguageModel``, in eval mode.
        data: windows of token IDs.
        settings: the settings of ``collect``; positions are those of windows.
        say: receives a line per model.

    Raises:
        ValueError: the models have different tokenizers, a model has no readable layers, or its output is not finite.
    """
    tokenizers = [report_model.model.tokenizer for report_model in models]
    if any(tokenizer != tokenizers[0] for tokenizer in tokenizers):
        raise ValueError("the models have different tokenizers: one page compares models on the same tokens")
    texts = {position: data.dataset[position]["inputs"].tolist() for position in settings.measured}
    running = _choose_running(models, settings, [texts[position] for position in settings.shown])
    entries = []
    for number, report_model in enumerate(models):
        say(f"{sanitized(report_model.label)}: measuring {len(settings.measured)} windows of text")
        entries.append(_measure(report_model, data, settings, running.get(number)))
    used = {token for ids in texts.values() for token in ids}
    used |= {token for entry in entries for look in entry["looks"] for row in look["next"] for token, _ in row}
    if running:
        used |= set(range(models[0].model.backbone.vocab_size))
    named = {position for entry in entries for layer in entry["layers"] for position in _named(layer["code"])}
    vocabulary, note = _texts_of(used, tokenizers[0])
    return {
        "format": FORMAT,
        "measures": {name: row.meaning for name, row in MEASURES.items()},
        "vocabulary": vocabulary,
        "vocabulary_note": note,
        "windows": [{"position": p, "name": sanitized(data.dataset.describe(p))} for p in settings.shown],
        "texts": {str(position): texts[position] for position in sorted(named.union(settings.shown))},
        "models": entries,
    }


def _choose_running(
    models: list[ReportModel], settings: ReportSettings, windows: list[list[int]]
) -> dict[int, dict[str, Any]]:
    """Return the weights of the model that the page runs, by its index; chosen as in ``collect.choose_running``."""
    able = [number for number, each in enumerate(models) if why_not(each.model) is None]
    if not able:
        return {}
    number = max(able, key=lambda number: (not models[number].untrained, number))
    weights = running_model(models[number].model, settings.weights_bytes, torch.tensor(windows))
    return {} if weights is None else {number: weights}


def _measure(
    report_model: ReportModel, data: ReportDataset, settings: ReportSettings, running: dict[str, Any] | None
) -> dict[str, Any]:
    model, layers = report_model.model, find_layers(report_model.model)
    batches = _without_labels(data.batches(settings.measured))
    stats = collect_stats(model, batches, settings.eps_squared, settings.unit_length, settings.measured)
    nats, labels = _loss(model, data.batches(settings.measured))
    entries = []
    for layer in layers:
        usage = stats.codes.get(layer)
        code = None if usage is None else code_data(usage, len(layers)) | {"zeros": zero_shares(stats, layer)}
        entries.append({"measures": stats.spreads.data(layer), "code": code})
    undefined: dict[str, str] = {}
    looks = [_look(model, data.dataset[p]["inputs"], undefined, running is None) for p in settings.shown]
    if not stats.codes:
        undefined["code"] = f"{name_of(model)} has no sparse code."
    return {
        "label": sanitized(report_model.label),
        "name": name_of(model),
        "untrained": report_model.untrained,
        "parameters": sum(p.numel() for p in model.parameters()),
        "context": model.backbone.context_length,
        "bounds": rate_bounds(layers, stats.tokens, model.backbone.embed_dim, settings),
        "layers": entries,
        "loss": nats / labels,
        "labels": labels,
        "is_bytes": model.tokenizer == "bytes",
        "looks": looks,
        "undefined": undefined,
        "running": running,
        "why_not_running": why_not(model),
        "run": report_model.run,
    }


def _without_labels(batches: Iterable[dict]) -> Iterator[dict]:
    """Yield batches without their labels: here labels are tokens instead of classes of samples."""
    for batch in batches:
        yield {key: value for key, value in batch.items() if key != "labels"}


@torch.inference_mode()
def _loss(model: LanguageModel, batches: Iterable[dict]) -> tuple[float, int]:
    """Return the sum of the nats of all labels, and the number of labels."""
    nats, labels = 0.0, 0
    for batch in batches:
        (result,) = model(**model.data_preprocessor(batch), mode="predict")
        nats, labels = nats + result["nats"].sum().item(), labels + int(result["labels"].sum())
    return nats, labels


@torch.inference_mode()
def _look(model: LanguageModel, ids: Tensor, undefined: dict[str, str], stored: bool) -> dict[str, Any]:
    """Return a window's most likely next tokens, ``next[n] = [[ID, probability], ...]``, and its packed ``attention``,
    ``(L, K, N, N)``, or None if a layer has no map between tokens. Without ``stored`` both are empty, because the page
    computes them."""
    if not stored:
        return {"next": [], "attention": None}
    layers = find_layers(model)
    maps: dict[int, Tensor] = {}

    def read(number: int, w: Tensor) -> None:
        attention = layers[number].attention(w)
        if attention is not None:
            maps[number] = attention[0].float().cpu()
        elif "attention" not in undefined:
            reason = no_attention(layers[number], layers[number].maps(w, None))
            undefined["attention"] = f"{name_of(model)} has no attention between tokens: {reason}."

    inputs = model.data_preprocessor({"inputs": ids[None]})
    if any("tap_w" in layer.taps() for layer in layers.values()):
        with read_taps(model, {"tap_w": read}):
            logits = model(**inputs)
    else:
        logits = model(**inputs)
    probabilities, tokens = logits[0].double().softmax(-1).topk(min(TOP_TOKENS, logits.shape[-1]))
    rows = [
        [[token, float(f"{p:.3g}")] for token, p in zip(*row)] for row in zip(tokens.tolist(), probabilities.tolist())
    ]
    complete = len(maps) == len(layers) and len({each.shape for each in maps.values()}) == 1
    attention = pack(torch.stack([maps[number] for number in sorted(maps)]), power=2) if complete else None
    return {"next": rows, "attention": attention}


def _named(code: dict[str, Any] | None) -> set[int]:
    """Return the positions of the windows that are listed for a layer's atoms."""
    directions = [] if code is None else code["directions"]
    return {position for each in directions for position, *_ in (*each["top"], *each["middle"])}


def _texts_of(tokens: set[int], description: Any) -> tuple[dict[str, str], str]:
    """Return the text of each token ID, and a note if the texts are unknown."""
    try:
        tokenizer = tokenizer_of(description)
    except ValueError as error:
        numbers = {str(token): f"[{token}]" for token in sorted(tokens)}
        return numbers, f"Tokens are shown by their numbers: {sanitized(error)}."
    return {str(token): _text_of(token, tokenizer) for token in sorted(tokens)}, ""


def _text_of(token: int, tokenizer: Tokenizer) -> str:
    if token >= tokenizer.vocab_size:
        return f"[{token}]"
    if isinstance(tokenizer, ByteTokenizer) and not (32 <= token < 127 or token in b"\n\t"):
        return f"\\x{token:02x}"
    return tokenizer.decode([token])
