"""Every registry of crate_mm, in one place.

A registry maps the ``type`` of a config entry to a class. All but four of them are children of MMEngine's registry of
the same purpose, so that whatever MMEngine or PyTorch registers (hooks, samplers, optimizers) is found as well.
``BACKBONES``, ``LAYERS``, ``HEADS`` and ``FIGURES`` stand alone: MMEngine allows one child registry per parent and
scope, and has none for figures. A measure stands in ``crate_mm.analysis.table``.

To add an own part, register it in a file of your own and name the file in the config's ``custom_imports``::

    @BACKBONES.register_module()
    class MyBackbone(nn.Module): ...
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from mmengine import registry as root
from mmengine.registry import Registry as _Registry

SCOPE = "crate_mm"


_registered_only: ContextVar[bool] = ContextVar("registered_only", default=False)


@contextmanager
def registered_only() -> Iterator[None]:
    """Inside its ``with``, a name finds a class that is registered already, and imports nothing.

    MMEngine's registries import what a dotted name names, or the registry of a scope that a name begins with. A
    config, which is code, may ask for that; data may not.
    """
    token = _registered_only.set(True)
    try:
        yield
    finally:
        _registered_only.reset(token)


def builds_from_data() -> bool:
    """Whether what is being built is what a file says of itself (see ``registered_only``)."""
    return _registered_only.get()


class Registry(_Registry):
    """MMEngine's registry with an error that names the closest entries."""

    def get(self, key: str) -> type:
        """Return the class registered as ``key`` here or in a parent; raise ``ValueError`` naming the closest names."""
        try:
            found = self.registered(key) if _registered_only.get() else super().get(key)
        except RuntimeError:  # MMEngine's answer to a name that is neither registered nor importable
            found = None
        if found is None:
            raise ValueError(f"unknown {self.name.replace('_', ' ')} {key!r}: {suggest(key, self.names())}")
        return found

    def registered(self, key: str) -> type | None:
        """The class that is registered as ``key`` here or in a parent, or None. Nothing of the key is imported."""
        self.import_from_location()
        registry = self
        while registry is not None and key not in registry.module_dict:
            registry = registry.parent
        return None if registry is None else registry.module_dict[key]

    def names(self) -> list[str]:
        """Sorted names that ``get`` finds, those of the parents included."""
        self.import_from_location()
        names, registry = set(), self
        while registry is not None:
            names.update(registry.module_dict)
            registry = registry.parent
        return sorted(names)


def suggest(name: str, known: list[str], most: int = 12) -> str:
    """Return 'did you mean ...?' with the closest of ``known`` names, or 'choose ...' with all of a short list."""
    by_lower = {k.lower(): k for k in known}
    close = [by_lower[k] for k in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)]
    if close:
        return f"did you mean {', '.join(close)}?"
    if len(known) <= most:
        return f"choose {', '.join(known)}"
    return f"none of the {len(known)} known names is close"


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
    """The arguments of ``LinearHead`` that a new head on a backbone's tokens has, where they are not the head's own.

    They are the ``head_settings`` of the backbone.

    Args:
        backbone: its type.
    """
    try:
        return dict(BACKBONES.get(backbone).head_settings)
    except AttributeError:
        raise ValueError(f"{backbone} is no backbone: let it inherit from crate_mm.models.Backbone") from None
