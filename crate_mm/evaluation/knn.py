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
    """
    was_training = model.training
    model.eval()
    features, labels, positions = [], [], []
    try:
        for batch in batches:
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
