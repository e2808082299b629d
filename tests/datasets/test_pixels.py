"""What becomes of an image's pixels, whatever its file says of them, and of the system's own troubles."""

import errno
import io
import os
import resource
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crate_mm import Predictor, get_model
from crate_mm.datasets import ClassificationDataset, PackedImages, UnreadableImagesError
from crate_mm.datasets.decode import decode_by_pil, decode_jpeg, plain_jpeg_size
from crate_mm.datasets.images import UnreadableImageError, open_image
from crate_mm.datasets.packed import write_shards
from crate_mm.datasets.transforms import to_uint8
from crate_mm.extras.encoding import encode
from crate_mm.registry import TRANSFORMS

RAMP = np.linspace(0, 1, 256).reshape(16, 16)


def saved(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        (RAMP.astype(np.float32), "TIFF"),
        ((RAMP * 254.5).astype(np.float32), "TIFF"),
        ((RAMP * 65535).round().astype(np.float32), "TIFF"),
        (np.full((4, 4), np.nan, np.float32), "TIFF"),
        ((RAMP * 65535).astype(np.int32), "TIFF"),
        ((RAMP * 2e9).astype(np.int32), "TIFF"),
        ((RAMP * -255).astype(np.int32), "TIFF"),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_grays_without_a_range_are_refused(pixels, kind, mode):
    with pytest.raises(UnreadableImageError, match="32-bit gray values from .* save the image with 8 or 16 bits"):
        open_image(saved(pixels, kind), mode)
    with pytest.raises(ValueError, match="image 0 cannot be read: 32-bit gray values"):
        Predictor(get_model("crate_tiny", num_classes=2, img_size=32))([Image.open(io.BytesIO(saved(pixels, kind)))])


@pytest.mark.parametrize(
    ("dtype", "most", "kind"),
    [
        (np.uint8, 255, "PNG"),
        (np.uint16, 65535, "PNG"),
        (np.uint16, 65535, "TIFF"),
        (">u2", 65535, "TIFF"),
        (np.int32, 255, "TIFF"),
        (np.float32, 255, "TIFF"),
    ],
)
def test_grays_with_a_range_are_scaled_to_it(dtype, most, kind):
    pixels = (RAMP * most).round()
    read = np.asarray(open_image(saved(pixels.astype(dtype), kind), "L"))
    assert np.array_equal(read, pixels // ((most + 1) // 256))


def test_sixteen_bits_are_scaled_where_an_image_is_made_smaller(tmp_path):
    Image.fromarray(np.full((40, 40), 32768, np.uint16)).save(tmp_path / "a.png")
    smaller = open_image(encode(str(tmp_path / "a.png"), 16, 90)[1])
    assert (smaller.size, np.asarray(smaller).mean()) == ((16, 16), pytest.approx(128, abs=1))


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128, 255])])
def test_a_palette_gives_its_colours_without_a_warning(transparency):
    picture = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) % 4, "P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    file = io.BytesIO()
    picture.save(file, "PNG", **({} if transparency is None else {"transparency": transparency}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = open_image(file.getvalue())
    assert [read.getpixel((x, 0)) for x in range(4)] == [(10, 20, 30), (40, 50, 60), (70, 80, 90), (100, 110, 120)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_reader_takes_the_pixels_as_they_lie(tmp_path, orientation):
    """As torchvision does: the same whether an image is read, decoded, packed or made smaller first."""
    exif = Image.Exif()
    exif[0x112] = orientation
    file, pixels = tmp_path / "a.jpg", np.zeros((16, 32, 3), np.uint8)
    pixels[:, 16:] = 255
    Image.fromarray(pixels).save(file, quality=100, exif=exif)
    smaller = encode(str(file), short_side=8, quality=100)[1]
    for image in (open_image(file), decode_by_pil(file.read_bytes()), open_image(smaller)):
        seen = np.asarray(image if isinstance(image, Image.Image) else image.permute(1, 2, 0))
        assert seen.shape[1] == 2 * seen.shape[0]
        assert seen[:, 0].max() < 30
        assert seen[:, -1].min() > 225
    data = file.read_bytes()
    decoded = torch.from_numpy(decode_jpeg(data, plain_jpeg_size(data)))
    assert torch.equal(decoded.permute(2, 0, 1), decode_by_pil(data))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_the_systems_troubles_are_no_images(tmp_path, monkeypatch, number):
    (tmp_path / "a.png").write_bytes(saved((RAMP * 255).astype(np.uint8), "PNG"))

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number), "a.png")

    monkeypatch.setattr("crate_mm.io.untrusted.os.open", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        open_image(tmp_path / "a.png")
    with pytest.raises(OSError, match=os.strerror(number)):
        encode(str(tmp_path / "a.png"), None, 90)


def test_too_few_files_end_a_run_and_replace_no_image(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    data = saved((RAMP * 255).astype(np.uint8), "PNG")
    write_shards(folder, [(f"{n}.png", data, 0) for n in range(40)], ["a"], shard_bytes=1)
    dataset = ClassificationDataset(PackedImages(tmp_path), max_unreadable=1000)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/dev/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, before[1]))
    try:
        with pytest.raises(UnreadableImagesError, match="no image can be read: .*Too many open files.*ulimit -n"):
            [dataset[n] for n in range(40)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [dataset[n]["unreadable"] for n in range(40)] == [-1] * 40


def test_a_folder_that_is_read_as_a_file_leaves_nothing_open(tmp_path):
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        with pytest.raises(UnreadableImageError, match="is not a regular file"):
            open_image(tmp_path)
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("as_tensor", [False, True])
def test_channels_are_converted_as_predictions_do(as_tensor):
    color = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8))
    for image, mode in ((color, "RGB"), (color.convert("L"), "L")):
        for channels, other in ((3, "RGB"), (1, "L")):
            convert = TRANSFORMS.build(dict(type="ConvertChannels", channels=channels))
            converted = convert(to_uint8(image)) if as_tensor else to_uint8(convert(image))
            expected = to_uint8(image.convert(other))
            assert converted.shape == expected.shape
            assert (converted.int() - expected.int()).abs().max() <= as_tensor  # PIL rounds, torchvision does not
            assert not (mode == other and not as_tensor) or convert(image) is image
    with pytest.raises(ValueError, match="expected channels=1 .* got 4"):
        TRANSFORMS.build(dict(type="ConvertChannels", channels=4))
