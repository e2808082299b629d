"""Class names."""

import os

import torchvision


def utf8_name(name: str) -> str:
    """Decode a file's name as UTF-8, so that class names do not depend on the locale.

    Bytes that are not UTF-8 stay surrogate escapes.
    """
    try:
        return os.fsencode(name).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name


def readable_names(folders: list[str]) -> list[str]:
    """Return the English class names if the folders are those of ImageNet-1K, else the folder names."""
    is_imagenet = len(folders) == 1000 and folders[0] == "n01440764" and folders[-1] == "n15075141"
    return imagenet_class_names() if is_imagenet else folders


def imagenet_class_names() -> list[str]:
    """Return the English names of ImageNet-1K's classes, sorted by WordNet ID."""
    return list(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
