"""All registries of crate_mm.

A registry maps the ``type`` of a config entry to a class. Most registries are children of MMEngine's registries, so
they also find the hooks, samplers and optimizers of MMEngine and PyTorch. ``BACKBONES``, ``LAYERS``, ``HEADS``
and ``FIGURES`` have no parent: MMEngine allows one child registry per parent and scope, and has no registry of
figures. Measures are in ``crate_mm.analysis.table``.

To add a class, register it in a file of your own and list the file in the config's ``custom_imports``::

    @BACKBONES.register_module()
    class MyBackbone(nn.Module): ...
"""

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from mmengine import registry as root
from mmengine.registry import Registry as _Registry

SCOPE = "crate_mm"


_registered_only: ContextVar[bool] = ContextVar("registered_only", default=False)


@contextmanager
def registered_only() -> Iterator[None]:
    """Within the ``with`` block, resolve names to already registered classes only; import nothing.

    MMEngine's registries import the module of a dotted name and the package of a scope prefix. A config is code and may
    cause imports; untrusted data may not.
    """
    token = _registered_only.set(True)
    try:
        yield
    finally:
        _registered_only.reset(token)


def builds_from_data() -> bool:
    """Return whether the current build is from untrusted data (see ``registered_only``)."""
    return _registered_only.get()


class Registry(_Registry):
    """MMEngine registry whose errors name the closest entries."""

    def get(self, key: str) -> type:
        """Return the class registered as ``key`` here or in a parent; raise ``ValueError`` with the closest names."""
        try:
            cls = self.registered(key) if _registered_only.get() else super().get(key)
        except RuntimeError:  # MMEngine: the name is neither registered nor importable
            cls = None
        if cls is None:
            raise ValueError(f"unknown {self.name.replace('_', ' ')} {key!r}: {suggest(key, self.names())}")
        return cls

    def registered(self, key: str) -> type | None:
        """Return the class registered as ``key`` here or in a parent, or None, without importing the key."""
        self.import_from_location()
        registry = self
        while registry is not None and key not in registry.module_dict:
            registry = registry.parent
        return None if registry is None else registry.module_dict[key]

    def names(self) -> list[str]:
        """Return the sorted names that ``get`` accepts, including names in parents."""
        self.import_from_location()
        names, registry = set(), self
        while registry is not None:
            names.update(registry.module_dict)
            registry = registry.parent
        return sorted(names)


def suggest(name: str, known: list[str], max_listed: int = 12) -> str:
    """Return a hint for an unknown name: the closest of ``known`` names, or all of them if the list is short."""
    by_lower = {k.lower(): k for k in known if _resemble(name.lower(), k.lower())}
    close = [by_lower[k] for k in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.0)]
    if close:
        return f"did you mean {', '.join(close)}?"
    if len(known) <= max_listed:
        return f"choose {', '.join(known)}"
    return f"none of the {len(known)} known names is close"


def _resemble(name: str, known: str) -> bool:
    """Return whether one name has all words of the other, or both are similar apart from a shared start and end.

    Many names share words: 'crate_gpt' and 'crate_tiny' have most of their letters in common.
    """
    words, others = re.findall(r"[^\W_]+", name), re.findall(r"[^\W_]+", known)
    if not words or not others:
        return False
    if set(words) <= set(others) or set(others) <= set(words):
        return True
    for end in (0, -1):
        while words and others and words[end] == others[end]:
            del words[end], others[end]
    return difflib.SequenceMatcher(None, "_".join(words), "_".join(others)).ratio() >= 0.6


def _child(parent: _Registry, *locations: str) -> Registry:
    return Registry(parent.name, parent=parent, scope=SCOPE, locations=[f"{SCOPE}.{name}" for name in locations])


MODELS = _child(root.MODELS, "models")
BACKBONES = Registry("backbone", scope=SCOPE, locations=[f"{SCOPE}.models"])
LAYERS = Registry("layer", scope=SCOPE, locations=[f"{SCOPE}.models"])
HEADS = Registry("head", scope=SCOPE, locations=[f"{SCOPE}.models"])
MODEL_WRAPPERS = _child(root.MODEL_WRAPPERS)
WEIGHT_INITIALIZERS = _child(root.WEIGHT_INITIALIZERS)

DATASETS = _child(root.DATASETS, "datasets")
DATA_SAMPLERS = _child(root.DATA_SAMPLERS, "datasets")
TRANSFORMS = _child(root.TRANSFORMS, "datasets")
FUNCTIONS = _child(root.FUNCTIONS, "datasets")

OPTIMIZERS = _child(root.OPTIMIZERS, "engine")
OPTIM_WRAPPERS = _child(root.OPTIM_WRAPPERS, "engine")
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS, "engine")
PARAM_SCHEDULERS = _child(root.PARAM_SCHEDULERS, "engine")
HOOKS = _child(root.HOOKS, "engine", "analysis.hook")
LOOPS = _child(root.LOOPS, "engine")
RUNNERS = _child(root.RUNNERS, "engine")
LOG_PROCESSORS = _child(root.LOG_PROCESSORS, "engine")

FIGURES = Registry("figure", scope=SCOPE, locations=[f"{SCOPE}.analysis.figures"])

METRICS = _child(root.METRICS, "evaluation")
EVALUATOR = _child(root.EVALUATOR)
VISUALIZERS = _child(root.VISUALIZERS, "engine")
VISBACKENDS = _child(root.VISBACKENDS)


def head_for(backbone: str) -> dict:
    """Return a backbone type's ``head_settings``: arguments of a new ``LinearHead`` that differ from its defaults."""
    try:
        return dict(BACKBONES.get(backbone).head_settings)
    except AttributeError:
        raise ValueError(f"{backbone} is no backbone: let it inherit from crate_mm.models.Backbone") from None
