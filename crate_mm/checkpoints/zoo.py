"""The family's weights that their authors have published, by short names: where they lie, under which licence.

A row says what the authors' pages say. Weights whose file has no address that a program could fetch name the page that
tells of them: a user gets the file there, and gives its path.
"""

from typing import NamedTuple

ALPHA = "https://huggingface.co/UCSC-VLAA/CRATE-alpha/tree/main"
OFFICIAL = "https://github.com/Ma-Lab-Berkeley/CRATE"
TOST = "https://github.com/RobinWu218/ToST/issues/2"
MIT = "MIT, as the repository that links to them"
ANNOUNCED = "their authors announced them, and no address is known here"


class Published(NamedTuple):
    """Weights that are published.

    Args:
        model: the name that ``get_model`` has for what they are of; None where there is no such model here.
        page: where they are told of.
        address: of the file, as ``local_file`` takes it, or None.
        licence: as the authors' page or repository states it, or None.
        sha256: of the file, as its authors publish it, or None.
        lack: why there is no address.
    """

    model: str | None
    page: str
    address: str | None = None
    licence: str | None = None
    sha256: str | None = None
    lack: str = "their page has no address that a program could download from"


PUBLISHED = {
    "crate_small_in1k": Published(
        "crate_small", f"{OFFICIAL}/issues/30", licence=MIT, lack="the link that their authors gave is dead since 2025"
    ),
    "crate_demo_in21k": Published(
        "crate_demo", "https://colab.research.google.com/drive/1rYn_NlepyW7Fu5LDliyBDmFZylHco7ss", licence=MIT
    ),
    "crate_small8_in21k": Published(None, "https://arxiv.org/abs/2308.16271"),
    "crate_base8_in21k": Published(None, "https://arxiv.org/abs/2308.16271"),
    "crate_mae_base_in1k": Published(
        "crate_mae_base",
        "https://drive.google.com/file/d/11i5BMwymqOsunq44WD3omN5mS6ZREQPO/view",
        licence=MIT,
    ),
    "crate_alpha_base_in1k": Published(
        "crate_alpha_base", f"{ALPHA}/torch", "hf://UCSC-VLAA/CRATE-alpha/torch/crate_alpha_B16.pth"
    ),
    "crate_alpha_large14_in1k": Published(
        "crate_alpha_large", f"{ALPHA}/torch", "hf://UCSC-VLAA/CRATE-alpha/torch/crate_alpha_L14.pth"
    ),
    "crate_alpha_in21k": Published(None, f"{ALPHA}/torch/in21k_Pretrain"),
    "crate_alpha_jax": Published(None, f"{ALPHA}/jax"),
    "tost_tiny_in1k": Published("tost_tiny_12", TOST, lack=ANNOUNCED),
    "tost_small_in1k": Published("tost_small_12", TOST, lack=ANNOUNCED),
    "tost_medium_in1k": Published("tost_medium_24", TOST, lack=ANNOUNCED),
    "crate_gpt": Published(None, OFFICIAL, lack="they are a language model's, for which there is no family here"),
}


def published_for(model: str) -> str | None:
    """The short name of the weights that are published of a model of ``get_model``, those with an address first."""
    found = [name for name, weights in PUBLISHED.items() if weights.model == model]
    return min(found, key=lambda name: PUBLISHED[name].address is None, default=None)


def none_published(model: str) -> str:
    """Say that no weights of a model of ``get_model`` are published, and of which models there are some."""
    known = ", ".join(dict.fromkeys(weights.model for weights in PUBLISHED.values() if weights.address))
    return f"no published weights of {model} are known here, only of {known}"


def published_hint(model: str) -> str:
    """Say how to get the published weights of a model of ``get_model``."""
    name = published_for(model)
    if name is None:
        return none_published(model)
    weights = PUBLISHED[name]
    if weights.address is None:
        return f"{weights.lack}; see {weights.page}"
    return f"crate_mm.get_model({model!r}, pretrained=True) takes {name}, {weights.address}"
