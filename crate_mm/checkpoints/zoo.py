"""Published weights by short name: weights in the package, and weights of other authors.

Addresses and licenses of the authors' weights are as stated on their pages. If an entry has no address, download the
file from its page by hand and give its path.
"""

from pathlib import Path
from typing import NamedTuple

import crate_mm

ALPHA = "https://huggingface.co/UCSC-VLAA/CRATE-alpha/tree/main"
OFFICIAL = "https://github.com/Ma-Lab-Berkeley/CRATE"
CBSA = "https://github.com/QishuaiWen/CBSA"
TOST = "https://github.com/RobinWu218/ToST/issues/2"
MIT = "MIT, as the repository that links to them"
CARD = "crate_mm/weights/README.md"
ANNOUNCED = "their authors announced them, but no address is known"


class Published(NamedTuple):
    """Published weights.

    Args:
        model: the model's name in ``get_model``, or None if there is none.
        page: the page that announces the weights; ``CARD`` for weights in the package.
        address: as for ``ensure_local``; for packaged weights, the path from the package's parent folder; or None.
        licence: as the authors' page or repository states it, or None.
        sha256: the file's hash as its authors publish it, or None.
        no_url_reason: why there is no address.
    """

    model: str | None
    page: str
    address: str | None = None
    licence: str | None = None
    sha256: str | None = None
    no_url_reason: str = "their page has no address for automatic download"

    @property
    def file(self) -> Path | None:
        """Path of the file if the package contains it, otherwise None."""
        return Path(crate_mm.__file__).parents[1] / self.address if self.page == CARD else None


PUBLISHED = {
    **{
        name: Published(name, CARD, f"crate_mm/weights/{name}.safetensors", "MIT")
        for name in ("crate_mini_digits", "crate_micro_fashion_mnist")
    },
    "crate_small_in1k": Published(
        "crate_small",
        f"{OFFICIAL}/issues/30",
        licence=MIT,
        no_url_reason="their authors' link has been dead since 2025",
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
    "tost_tiny_in1k": Published("tost_tiny_12", TOST, no_url_reason=ANNOUNCED),
    "tost_small_in1k": Published("tost_small_12", TOST, no_url_reason=ANNOUNCED),
    "tost_medium_in1k": Published("tost_medium_24", TOST, no_url_reason=ANNOUNCED),
    **{f"cbt_{arch}_in1k": Published(f"cbt_{arch}", CBSA, licence=MIT) for arch in ("tiny", "small", "base", "large")},
    "crate_gpt": Published(None, OFFICIAL),
}


def packaged() -> list[str]:
    """Return the short names of the weights in the package. The models have the same names."""
    return [name for name, weights in PUBLISHED.items() if weights.file is not None]


def published_for(model: str) -> str | None:
    """Return the short name of a model's published weights, preferably with an address, or None."""
    names = [name for name, weights in PUBLISHED.items() if weights.model == model]
    return min(names, key=lambda name: PUBLISHED[name].address is None, default=None)


def is_available(model: str) -> bool:
    """Return whether a model's published weights are in the package or have an address for download."""
    return any(weights.model == model and weights.address for weights in PUBLISHED.values())


def none_published(model: str) -> str:
    """Return the message that a model has no published weights; it lists the models that have some."""
    models = ", ".join(dict.fromkeys(weights.model for weights in PUBLISHED.values() if weights.address))
    return f"no published weights of {model} are known here, only of {models}"


def published_hint(model: str) -> str:
    """Return a message on how to get a model's published weights."""
    name = published_for(model)
    if name is None:
        return none_published(model)
    weights = PUBLISHED[name]
    if weights.address is None:
        return f"{weights.no_url_reason}; see {weights.page}"
    return f"crate_mm.get_model({model!r}, pretrained=True) loads {name}, {weights.address}"
