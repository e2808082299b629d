"""What ``Predictor`` takes for a list of images, and what it refuses."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mm import Predictor, get_model


@pytest.fixture(scope="module")
def predict():
    torch.manual_seed(0)
    return Predictor(get_model("crate_tiny", num_classes=3, img_size=32), batch_size=2)


def pictures():
    return [Image.new("RGB", (9, 7), color) for color in ("red", "green", "blue")]


@pytest.mark.parametrize(
    "kind", [tuple, iter, lambda images: (i for i in images), lambda images: map(np.asarray, images)]
)
def test_whatever_has_an_order_is_taken(predict, kind):
    assert predict(kind(pictures())) == predict(pictures())


def test_nothing_gives_nothing(predict):
    assert predict([]) == predict(iter([])) == []


@pytest.mark.parametrize("images", [None, 3, {"a.png": 1}, {"a.png"}, b"bytes"])
def test_what_has_no_order_is_refused(predict, images):
    with pytest.raises(ValueError, match=f"images are {type(images).__name__}: expected a list"):
        predict(images)


def test_a_folder_stands_for_its_images(predict, tmp_path):
    (tmp_path / "b").mkdir()
    files = [tmp_path / "a.png", tmp_path / "b" / "c.png", tmp_path / "z.png"]
    for file, picture in zip(files, pictures()):
        picture.save(file)
    (tmp_path / "notes.txt").write_text("no image")
    assert predict(tmp_path) == predict(str(tmp_path)) == predict(files)
    assert [found.image for found in predict.stream(tmp_path)] == files


def test_tensors_and_arrays_are_images_or_batches(predict):
    arrays = [np.asarray(picture) for picture in pictures()]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    expected = predict(pictures())
    assert predict(np.stack(arrays)) == predict(torch.stack(tensors)) == predict(tensors) == expected
    # A product of matrices may round otherwise in a batch of another size.
    (alone,) = predict(tensors[0])
    assert dict(alone) == pytest.approx(dict(expected[0]), rel=1e-5)
    gray = torch.arange(63, dtype=torch.uint8).view(1, 7, 9)
    assert predict(gray) == predict(gray[0].numpy())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 4, 4), r"image 0 is a tensor of float32 of shape \(3, 4, 4\): expected uint8, from 0 to 255"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"of uint8 of shape \(4, 4, 3\): expected uint8"),
        (torch.zeros(2, 3, 3, 4, 4, dtype=torch.uint8), "image 0 is a tensor of uint8"),
    ],
)
def test_tensors_of_another_kind_are_refused(predict, image, message):
    with pytest.raises(ValueError, match=message):
        predict(image)


def test_a_broken_image_does_not_lose_the_others(predict, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("crate_mm.inference.predictor.print_log", lambda text, *_: told.append(text))
    (tmp_path / "broken.png").write_bytes(b"no image")
    good = pictures()
    mixed = [good[0], tmp_path / "broken.png", good[1], tmp_path / "nowhere.png", tmp_path / "broken.png", good[2]]
    found = predict(iter(mixed))
    for one, other in zip((found[0], found[2], found[5]), predict(good)):  # in other batches
        assert dict(one) == pytest.approx(dict(other), rel=1e-5)
    assert found[1] == found[3] == found[4] == []
    assert "cannot identify image file" in found[1].reason
    assert "No such file" in found[3].reason
    assert told[0].startswith("3 of 6 images cannot be read: image 1 cannot be read: cannot identify image file")
    with pytest.raises(ValueError, match="image 0 cannot be read: .*image 1 cannot be read: .*No such file"):
        predict([tmp_path / "broken.png", tmp_path / "nowhere.png"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_takes_what_has_no_end(predict, workers):
    taken = []

    def endless():
        while True:
            taken.append(pictures()[len(taken) % 3])
            yield taken[-1]

    stream = predict.stream(endless(), workers)
    found = [next(stream) for _ in range(3)]
    stream.close()
    for one, other in zip(found, predict(pictures()), strict=True):  # in batches of other sizes, which round otherwise
        assert dict(one.classes) == pytest.approx(dict(other), rel=1e-5)
    assert [one.image for one in found] == taken[:3]
    assert torch.equal(found[1].pixels, predict.prepare(pictures()[1]))
    assert len(taken) == 6  # the batch that is used, the one that the third image needs, and the one ahead


def test_images_that_come_out_in_several_sizes_get_a_sentence():
    predict = Predictor(get_model("crate_tiny", num_classes=3, img_size=32), transforms=[])
    with pytest.raises(ValueError, match="transformed images have the sizes 32 x 32 and 32 x 40"):
        predict([Image.new("RGB", (32, 32)), Image.new("RGB", (40, 32))])


def test_uint8_given_to_a_model_says_how_to_normalize(predict):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"got uint8 of shape \(2, 3, 32, 32\)") as refused:
        predict.model(images)
    (advice,) = re.findall(r"model\(.*\)\)", str(refused.value))
    logits = eval(advice, {"model": predict.model, "images": images})
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(logits, predict.model((images / 255 - mean) / std))
