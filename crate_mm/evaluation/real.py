"""ImageNet ReaL: accuracy on the reassessed labels.

Source: Beyer et al., "Are we done with ImageNet?", 2020, arXiv 2006.07159, and its file ``real.json``.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from ..datasets.base import dataset_of
from ..io.untrusted import read_json, read_regular, sanitized
from ..registry import METRICS
from .metrics import ClassificationMetric

MAX_LABEL_BYTES = 2**26  # real.json has a megabyte


@METRICS.register_module()
class ImageNetReaL(ClassificationMetric):
    """Top-1 accuracy in %: a prediction is correct if it is one of the image's reassessed labels.

    Images without reassessed labels are not counted. The number N of ``ILSVRC2012_val_N.JPEG`` is the image's position
    in ``labels``, from 1. Labels are indices of the sorted WordNet IDs, as in ``ImageNet`` and ``ImageFolder``.

    Args:
        labels: the file ``real.json``: a list of labels for each of the 50,000 validation images, sorted by name.

    Raises:
        ValueError: the file is missing or malformed, or (in evaluation) an image's name has no number.
    """

    default_prefix = "real"

    def __init__(self, labels: str) -> None:
        super().__init__(topk=(1,))
        self.labels = read_real_labels(labels)
        self.source = labels
        self.dataset = None  # set by the Runner, for the file names

    def compute_metrics(self, samples: dict[str, Tensor]) -> dict[str, float]:
        """Return ``{top1, num_samples}`` from rows with one entry per sample."""
        if self.dataset is None:
            raise ValueError("ImageNetReaL needs the dataset for its file names: set its attribute 'dataset'")
        hits, describe = [], dataset_of(self.dataset).describe
        for position, (prediction, *_) in zip(samples["sample_idx"].tolist(), samples["top"].tolist()):
            labels = self.labels[self._number(describe(position)) - 1]
            if labels:
                hits.append(prediction in labels)
        if not hits:
            raise ValueError(f"none of the {len(samples['top'])} images has a label in {self.source}")
        return {"top1": 100 * torch.tensor(hits).double().mean().item(), "num_samples": len(hits)}

    def _number(self, path: str) -> int:
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})", Path(path).stem)
        if not match or not 1 <= int(match[1]) <= len(self.labels):
            raise ValueError(
                f"{sanitized(path)} is not an ImageNet validation image: ImageNet ReaL expects the name "
                f"ILSVRC2012_val_NNNNNNNN with a number from 1 to {len(self.labels)}"
            )
        return int(match[1])


def read_real_labels(path: str) -> list[list[int]]:
    """Read ``real.json``; raise ``ValueError`` if it is missing or not a list of lists of integers."""
    try:
        labels = read_json(read_regular(path, MAX_LABEL_BYTES))
    except FileNotFoundError:
        raise ValueError(
            f"{path} does not exist: download ImageNet ReaL's labels, the file real.json of "
            "https://github.com/google-research/reassessed-imagenet"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    valid = isinstance(labels, list) and labels and all(isinstance(row, list) for row in labels)
    if not valid or not all(isinstance(label, int) for row in labels for label in row):
        raise ValueError(f"{path} is not ImageNet ReaL's real.json: expected a list of lists of class indices")
    return labels
