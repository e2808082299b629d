"""Images that are decoded on the device: what the loader hands to the preprocessor. Shapes: B images, L bytes.

A row of a batch is one tensor: the numbers of a ``Header``, 32 bits each, then the bytes of a JPEG, then whatever fills
it up to the longest. ``EncodedRandomResizedCrop`` makes rows, ``ImagePreprocessor`` takes them.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision import io
from torchvision.transforms.v2 import functional as F


class Header(NamedTuple):
    """What is done to an image after it is decoded; all in pixels but ``length``, in bytes, and ``flip``, 0 or 1."""

    length: int
    top: int
    left: int
    height: int
    width: int
    flip: int
    out_height: int
    out_width: int


HEADER_BYTES = 4 * len(Header._fields)


def join(header: Header, jpeg: bytes) -> Tensor:
    """One row ``(L,)`` of a batch, uint8."""
    numbers = torch.tensor(header, dtype=torch.int32).view(torch.uint8)
    return torch.cat([numbers, torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)])


def decode_batch(
    batch: dict[str, Tensor], device: torch.device | str, on_host: Callable[[Any], dict] | None = None
) -> dict[str, Tensor]:
    """Let a batch have ``inputs``, uint8 ``(B, 3, H, W)`` on a device, in the place of its ``encoded`` rows.

    A header that is whole says nothing of what follows. An image that the device refuses is decoded on the host; where
    that refuses it too, it is unreadable, and as everywhere else another sample takes its place.

    Args:
        batch: with ``encoded`` ``(B, L)``; where images are replaced, its other entries change in their place.
        device: where the images go.
        on_host: gives the sample at (position, seed), a row that is sure to be decoded, and says what it replaces.

    Raises:
        ValueError: an image cannot be decoded, and nothing is there to take its place.
    """
    rows = batch["encoded"]
    try:
        images = decode_crops(rows, device)
    except ValueError:
        if on_host is None:
            raise
        crops = []
        for i in range(len(rows)):
            try:
                crops.append(decode_crops(rows[i : i + 1], device)[0])
            except ValueError:
                position = batch["unreadable"][i] if batch["unreadable"][i] >= 0 else batch["sample_idx"][i]
                seed = batch["seed"][i].item()
                sample = on_host((position.item(), seed) if seed >= 0 else position.item())
                for key in ("labels", "sample_idx", "unreadable"):
                    batch[key][i] = sample[key]
                crops.append(decode_crops(sample["encoded"][None], device)[0])
        images = torch.stack(crops)
    return {**{key: value for key, value in batch.items() if key not in ("encoded", "seed")}, "inputs": images}


def decode_crops(rows: Tensor, device: torch.device | str) -> Tensor:
    """Decode rows ``(B, L)`` on a device (a GPU's nvJPEG, or the CPU), crop, resize and flip: uint8 ``(B, 3, H, W)``.

    Args:
        rows: uint8, on the CPU, where nvJPEG takes them from.
        device: where the images go.

    Raises:
        ValueError: this torchvision does not decode JPEGs, or an image is none.
    """
    if not hasattr(io, "decode_jpeg"):
        raise ValueError(
            "this torchvision has no decode_jpeg: use DecodeRandomResizedCrop instead of EncodedRandomResizedCrop"
        )
    numbers = rows[:, :HEADER_BYTES].flatten().clone()  # in memory of its own, which begins where numbers may
    headers = [Header(*row) for row in numbers.view(torch.int32).view(len(rows), -1).tolist()]
    jpegs = [row[HEADER_BYTES : HEADER_BYTES + header.length] for row, header in zip(rows, headers)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torchvision 0.29's, of all its decoding
        try:
            if torch.device(device).type == "cuda":
                images = io.decode_jpeg(jpegs, io.ImageReadMode.RGB, device)
            else:
                images = [io.decode_jpeg(jpeg, io.ImageReadMode.RGB) for jpeg in jpegs]
        except RuntimeError as error:
            raise ValueError(f"a batch of JPEGs cannot be decoded on {device}: {error}") from None
    return torch.stack([_crop(image, header) for image, header in zip(images, headers)])


def _crop(image: Tensor, header: Header) -> Tensor:
    box, size = header[1:5], [header.out_height, header.out_width]
    crop = F.resized_crop(image, *box, size, antialias=True)
    return crop.flip(-1) if header.flip else crop
