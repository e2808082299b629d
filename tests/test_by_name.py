"""Models by name with the weights of a checkpoint: whole, with another head or size, and never another model's."""

import pytest
import torch

from crate_mm import Predictor, get_model, init_model
from crate_mm.checkpoints import CheckpointError, zoo
from crate_mm.models import MaskedAutoencoder
from crate_mm.registry import MODELS

SMALL = {"img_size": 32, "patch_size": 8}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of crate_tiny with all that one of training says of itself, and its model's logits."""
    torch.manual_seed(0)
    described = {
        "type": "ImageClassifier",
        "backbone": {"type": "CRATE", "arch": "tiny", **SMALL, "ista_lambda": 0.3},
        "head": {"type": "LinearHead", "num_classes": 5, "pool": "mean"},
        "preprocessor": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.2]},
    }
    model = MODELS.build(described).eval()
    file = tmp_path_factory.mktemp("trained") / "tiny.pth"
    told = {"model": described, "dataset_meta": {"classes": list("abcde")}, "test_transforms": [{"type": "CenterCrop"}]}
    told["test_transforms"] = [{"type": "Resize", "size": [32, 32]}]
    torch.save({"meta": told, "state_dict": model.state_dict()}, file)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        return file, images, model(images)


def test_the_model_is_the_checkpoints(trained):
    """Its classes, pooling, sizes, lambda and normalisation are not told by the name."""
    file, images, logits = trained
    model = get_model("crate_tiny", pretrained=file)
    assert not model.training
    assert torch.equal(model(images), logits)
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx([102, 127.5, 153])
    assert model.class_names == list("abcde")
    assert Predictor(model).class_names == list("abcde")


def test_what_is_given_holds(trained):
    file, images, logits = trained
    assert torch.equal(get_model("crate_tiny", pretrained=file, num_classes=5, **SMALL)(images), logits)
    assert not torch.allclose(get_model("crate_tiny", pretrained=file, pool="cls")(images), logits)
    other = get_model("crate_tiny", pretrained=file, ista_lambda=0.1)
    assert torch.equal(other.head.fc.weight, init_model(None, file).head.fc.weight)
    assert not torch.allclose(other(images), logits)


def test_another_number_of_classes_takes_a_new_head(trained):
    file, _, _ = trained
    model, whole = get_model("crate_tiny", num_classes=7, pretrained=file), init_model(None, file)
    assert model.head.fc.weight.shape == (7, 384)
    assert model.class_names is None
    assert all(torch.equal(v, whole.backbone.state_dict()[k]) for k, v in model.backbone.state_dict().items())


def test_without_classes_a_model_gives_the_features_that_its_head_would_take(trained):
    file, images, logits = trained
    whole, model = init_model(None, file), get_model("crate_tiny", num_classes=0, pretrained=file)
    assert torch.equal(whole.head.fc(model(images)), logits)


def test_another_image_size_resizes_the_positions(trained):
    file, _, _ = trained
    model = get_model("crate_tiny", img_size=64, pretrained=file)
    assert model.backbone.embedding.pos_embed.shape == (1, 65, 384)
    assert torch.equal(model.head.fc.weight, init_model(None, file).head.fc.weight)
    assert model.test_transforms is None, "they are for images of another size"


def test_a_model_that_is_another_is_refused(trained):
    file, _, _ = trained
    with pytest.raises(
        CheckpointError, match=r"get_model\('crate_small'\): .*tiny.pth is of another model, with the backbone "
    ):
        get_model("crate_small", pretrained=file)
    with pytest.raises(CheckpointError, match=r"is of another model"):
        get_model("vit_small", pretrained=file)
    with pytest.raises(CheckpointError, match=r"does not fit the model: they differ in backbone.blocks.0.compress.out"):
        get_model("crate_tiny", pretrained=file, compress={"type": "MSSA", "tied": True})


def test_the_encoder_of_an_autoencoder_is_taken_over(tmp_path):
    described = {"type": "MaskedAutoencoder", "backbone": {"type": "CRATEMAE", "arch": "tiny"}}
    autoencoder = MODELS.build(described)
    assert isinstance(autoencoder, MaskedAutoencoder)
    torch.save({"meta": {"model": described}, "state_dict": autoencoder.state_dict()}, tmp_path / "mae.pth")
    model = get_model("crate_mae_tiny", num_classes=3, pretrained=tmp_path / "mae.pth")
    encoder = autoencoder.backbone.state_dict()
    assert all(torch.equal(value, encoder[name]) for name, value in model.backbone.state_dict().items())
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 3)


def test_published_weights_of_a_name(hub, monkeypatch, trained):
    file, images, logits = trained
    hub.repos["me/crate"] = {"main": {"tiny.pth": file.read_bytes()}}
    row = zoo.Published("crate_tiny", "https://a.page", "hf://me/crate/tiny.pth")
    monkeypatch.setitem(zoo.PUBLISHED, "crate_tiny_x", row)
    assert torch.equal(get_model("crate_tiny", pretrained=True)(images), logits)
    assert torch.equal(get_model("crate_tiny", pretrained="crate_tiny_x")(images), logits)


def test_without_published_weights_the_sentence_names_the_call():
    with pytest.raises(
        ValueError, match=r"get_model\('crate_tiny', pretrained=True\): no published weights of crate_t"
    ):
        get_model("crate_tiny", pretrained=True)
    with pytest.raises(ValueError, match=r"get_model\('crate_small', pretrained=True\): .*/CRATE/issues/30"):
        get_model("crate_small", pretrained=True)
    with pytest.raises(ValueError, match=r"get_model\('crate_tiny', pretrained='none.pth'\): checkpoint none.pth does"):
        get_model("crate_tiny", pretrained="none.pth")
    with pytest.raises(ValueError, match="is a folder"):
        get_model("crate_tiny", pretrained="")  # of a variable that is not set: new weights would pass for trained ones
