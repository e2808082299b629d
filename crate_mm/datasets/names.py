"""What classes are called."""

import os

import torchvision


def utf8_name(name: str) -> str:
    """A file's name as text in UTF-8, whatever the locale says that names are in: a class is called the same in all.

    Bytes that are no UTF-8 stay the surrogates by which Python stands for them.
    """
    try:
        return os.fsencode(name).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name


def readable_names(folders: list[str]) -> list[str]:
    """The English names of classes whose folders are ImageNet-1K's, the folders' names of any others."""
    whole = len(folders) == 1000 and folders[0] == "n01440764" and folders[-1] == "n15075141"
    return imagenet_class_names() if whole else folders


def imagenet_class_names() -> list[str]:
    """The English names of ImageNet-1K's classes, in the order of the sorted WordNet ids."""
    return list(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
