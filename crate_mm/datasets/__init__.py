"""Datasets, transforms and samplers."""

from .base import SampleDataset, Source
from .benchmarks import CIFAR10, CIFAR100, FashionMNIST, Flowers102, OxfordIIITPet
from .classification import ClassificationDataset, UnreadableImagesError, collate
from .decode import DecodeRandomResizedCrop, DecodeResize
from .folders import ClassFolders, ImageFiles, ImageNet
from .mask_sources import ADE20K, Cityscapes, MaskFolders, VOCSegmentation
from .names import imagenet_class_names
from .packed import PackedImages
from .sampler import GlobalBatchSampler
from .scenes import Scenes
from .segmentation import SegmentationDataset
from .sources import Digits
from .text import PythonLibrary, TextFiles
from .transforms import build_transforms
from .views import Views
from .windows import Windows
from .workers import init_worker

__all__ = [
    "ADE20K", "CIFAR10", "CIFAR100", "Cityscapes", "ClassFolders", "ClassificationDataset", "DecodeRandomResizedCrop",
    "DecodeResize", "Digits", "FashionMNIST", "Flowers102", "GlobalBatchSampler", "ImageFiles", "ImageNet",
    "MaskFolders", "OxfordIIITPet", "PackedImages", "PythonLibrary", "SampleDataset", "Scenes", "SegmentationDataset",
    "Source", "TextFiles", "UnreadableImagesError", "VOCSegmentation", "Views", "Windows", "build_transforms",
    "collate", "imagenet_class_names", "init_worker",
]  # fmt: skip
