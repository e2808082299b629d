"""Several views of one image, each with its own transforms, as in DINO and SimDINO."""

import torch
from torch.utils.data import Dataset

from ..registry import DATASETS
from .base import Field
from .classification import ClassificationDataset
from .transforms import build_steps


@DATASETS.register_module()
class Views(ClassificationDataset):
    """Samples of a ``ClassificationDataset`` whose ``inputs`` are a list of uint8 images ``(C, H, W)``, one per view.

    In a batch, ``inputs`` is a list of tensors ``(B, C, H, W)`` in the order of ``views``; the other entries are not
    repeated. A sample's seed determines all its views.

    Args:
        source, max_unreadable: as for ``ClassificationDataset``.
        views: dicts of ``transforms``, configs of ``TRANSFORMS``, and ``num``, the number of views (default: 1). If all
            ``transforms`` begin with a ``DecodeRandomResizedCrop`` or a ``DecodeResize``, and the source has encoded
            images, each view decodes the image at its own resolution; otherwise, the image is decoded once.

    Raises:
        ValueError: there are no views, or a view has an invalid ``num`` or keys other than ``num`` and ``transforms``.
    """

    def __init__(self, source: dict | Dataset, views: list[dict], max_unreadable: int = 100) -> None:
        super().__init__(source, max_unreadable=max_unreadable)
        pipelines = []
        for view in views:
            num = view.get("num", 1) if isinstance(view, dict) else None
            if type(num) is not int or num < 1 or "transforms" not in view or view.keys() - {"num", "transforms"}:
                raise ValueError(f"Views: expected dict(num=N, transforms=[...]) with N of at least 1, got {view!r}")
            pipelines += [build_steps(view["transforms"])] * num
        if not pipelines:
            raise ValueError("Views: there are no views, expected a list of dict(num=N, transforms=[...])")
        self._set_views(pipelines)

    @property
    def spec(self) -> dict[str, Field | list[Field]]:
        spec = super().spec
        return {**spec, "inputs": [spec["inputs"]] * len(self._views)}

    def _inputs(self, views: list[torch.Tensor]) -> list[torch.Tensor]:
        return views
