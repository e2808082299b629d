import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from crate_mm import get_model
from crate_mm.evaluation import extract_features, knn_predict


@pytest.mark.parametrize(
    ("k", "chunk", "temperature"), [(1, 1000, None), (5, 7, None), (20, 1000, None), (20, 7, 0.07)]
)
def test_votes_are_scikit_learns(k, chunk, temperature):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (200,), generator=generator)
    train = torch.randn(200, 12, generator=generator).double() + torch.nn.functional.one_hot(labels, 12)
    test = 3 * torch.randn(60, 12, generator=generator).double()
    weights = (lambda distances: np.exp((1 - distances) / temperature)) if temperature else "uniform"
    theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights).fit(train, labels)
    assert knn_predict(train, labels, test, k, chunk, temperature).tolist() == theirs.predict(test).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(k=0), "k must be between 1 and the 10 training images, got 0"),
        (dict(k=11), "k must be between 1 and the 10 training images, got 11"),
        (dict(k=1, temperature=0), "temperature must be a number above 0, or None, got 0"),
        (dict(k=1, temperature=float("nan")), "temperature must be a number above 0, or None, got nan"),
    ],
)
def test_votes_that_cannot_be_counted_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        knn_predict(torch.randn(10, 3), torch.zeros(10, dtype=torch.long), torch.randn(2, 3), **options)


def test_features_are_the_pooled_tokens():
    model = get_model("crate_tiny", 4, img_size=16, patch_size=8, pool="mean").train()
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    parts = zip(images.split(2), torch.arange(5).split(2))
    batches = [{"inputs": part, "labels": number, "sample_idx": number} for part, number in parts]
    features, labels, positions = extract_features(model, batches)
    with torch.no_grad():
        expected = model.backbone(model.data_preprocessor.normalize(images)).mean(1)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert labels.tolist() == positions.tolist() == [0, 1, 2, 3, 4]
    assert model.training
