"""k nearest neighbours on a backbone's features. Shapes: n training and m test images, d dimensions."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.inference_mode()
def extract_features(model: nn.Module, batches: Iterable[dict]) -> tuple[Tensor, Tensor, Tensor]:
    """Run a task's backbone over a loader's batches, in eval mode.

    Returns:
        The features ``(n, d)`` in float32, the labels ``(n,)`` and the samples' positions ``(n,)``, on the CPU.

    Raises:
        ValueError: a batch does not have one label and one position a sample.
    """
    was_training = model.training
    model.eval()
    features, labels, positions = [], [], []
    try:
        for batch in batches:
            shapes = {key: tuple(batch[key].shape) for key in ("labels", "sample_idx") if key in batch}
            if [len(shapes.get(key, ())) for key in ("labels", "sample_idx")] != [1, 1]:
                raise ValueError(
                    f"features are compared by their samples' classes: expected labels (B,) and sample_idx (B,), the "
                    f"data has {', '.join(f'{key} {shape}' for key, shape in shapes.items()) or 'neither'}"
                )
            features.append(model(**model.data_preprocessor(batch), mode="features").float().cpu())
            labels.append(batch["labels"])
            positions.append(batch["sample_idx"])
    finally:
        model.train(was_training)
    return torch.cat(features), torch.cat(labels), torch.cat(positions)


@torch.inference_mode()
def knn_predict(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, k: int = 20, chunk: int = 1024
) -> Tensor:
    """Classify by the majority of the k training images with the largest cosine similarity; of equals, the smallest.

    Args:
        train_features: ``(n, d)``.
        train_labels: ``(n,)``, non-negative.
        test_features: ``(m, d)``.
        k: how many neighbours vote.
        chunk: how many test images are compared at once; memory is ``chunk * n`` numbers.

    Returns:
        The predicted labels ``(m,)``.

    Raises:
        ValueError: ``k`` is not between 1 and n.
    """
    if not 1 <= k <= len(train_features):
        raise ValueError(f"k must be between 1 and the {len(train_features)} training images, got {k}")
    train = F.normalize(train_features, dim=1)
    num_classes = int(train_labels.max()) + 1
    predictions = []
    for part in F.normalize(test_features, dim=1).split(chunk):
        neighbours = (part @ train.T).topk(k, dim=1).indices
        votes = F.one_hot(train_labels[neighbours], num_classes).sum(dim=1)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


@torch.inference_mode()
def nearest(
    features: Tensor, queries: Tensor, k: int, itself: Tensor | None = None, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """The k rows of ``features`` with the largest cosine similarity to each query, the most similar first.

    Args:
        features: ``(n, d)``.
        queries: ``(m, d)``.
        k: how many.
        itself: ``(m,)``, for each query the row that it is itself, which is left out, or -1.
        chunk: how many queries are compared at once; memory is ``chunk * n`` numbers.

    Returns:
        The rows ``(m, k)`` and their similarities ``(m, k)``.

    Raises:
        ValueError: there are not k others.
    """
    others = len(features) - (itself is not None and bool((itself >= 0).any()))
    if not 1 <= k <= others:
        raise ValueError(f"k must be between 1 and the {others} images to choose from, got {k}")
    rows, similarities = [], []
    base = F.normalize(features, dim=1)
    for start in range(0, len(queries), chunk):
        part = F.normalize(queries[start : start + chunk], dim=1) @ base.T
        if itself is not None:
            own = itself[start : start + chunk]
            known = (own >= 0).nonzero().flatten()
            part[known, own[known]] = -torch.inf
        similarity, row = part.topk(k, dim=1)
        rows.append(row)
        similarities.append(similarity)
    return torch.cat(rows), torch.cat(similarities)
