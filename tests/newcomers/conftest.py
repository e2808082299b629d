"""Restore the registries after each test file, because other tests must not see the classes of these files."""

import sys

import pytest

from crate_mm.registry import BACKBONES, DATASETS, LAYERS, METRICS, MODELS

REGISTRIES = (BACKBONES, DATASETS, LAYERS, METRICS, MODELS)
FILES = ("attention_only", "contraction", "distillation", "language")


@pytest.fixture(scope="module", autouse=True)
def _registries_as_before():
    for registry in REGISTRIES:
        registry.names()  # imports the package's own classes
    before = [dict(registry.module_dict) for registry in REGISTRIES]
    yield
    for registry, classes in zip(REGISTRIES, before):
        registry.module_dict.clear()
        registry.module_dict.update(classes)
    for name in FILES:
        sys.modules.pop(name, None)
