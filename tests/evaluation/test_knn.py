import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from crate_mm import get_model
from crate_mm.evaluation import extract_features, knn_predict


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_against_scikit_learn(k, chunk):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (200,), generator=generator)
    train = torch.randn(200, 12, generator=generator).double() + torch.nn.functional.one_hot(labels, 12)
    test = 3 * torch.randn(60, 12, generator=generator).double()
    theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(train, labels).predict(test)
    assert knn_predict(train, labels, test, k, chunk).tolist() == theirs.tolist()


@pytest.mark.parametrize("k", [0, 11])
def test_more_neighbours_than_images(k):
    with pytest.raises(ValueError, match=f"k must be between 1 and the 10 training images, got {k}"):
        knn_predict(torch.randn(10, 3), torch.zeros(10, dtype=torch.long), torch.randn(2, 3), k)


def test_features_are_the_pooled_tokens():
    model = get_model("crate_tiny", 4, img_size=16, patch_size=8, pool="mean").train()
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    batches = [
        {
            "inputs": images[i : i + 2],
            "labels": torch.arange(i, min(i + 2, 5)),
            "sample_idx": torch.arange(i, min(i + 2, 5)),
        }
        for i in (0, 2, 4)
    ]
    features, labels, positions = extract_features(model, batches)
    with torch.no_grad():
        expected = model.backbone(model.data_preprocessor.normalize(images)).mean(1)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert labels.tolist() == positions.tolist() == [0, 1, 2, 3, 4]
    assert model.training
