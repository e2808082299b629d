"""Configs: found, loaded, overridden and checked, and made ready for the Runner."""

import ast
import copy
import inspect
import sys
import uuid
from pathlib import Path

from mmengine import registry as mmengine_registry
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner, TestLoop, ValLoop
from torch.utils.data import DataLoader

import crate_mm

from .. import registry
from ..registry import DATASETS, suggest
from .batch import plan_batch

_PACKAGE = Path(crate_mm.__file__).parent
# An installed wheel has the configs inside the package, a clone beside it.
CONFIGS = next(p for p in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if p.is_dir())

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def load_config(config: str | Path | Config, overrides: dict | None = None) -> Config:
    """Load a config file, or one of the package's by its name, and apply ``--cfg-options`` to it.

    The folder of the file and the current folder are put on ``sys.path``, so that ``custom_imports`` finds files there.

    Raises:
        ValueError: no such file, an error in it, or an override that names no setting.
    """
    if isinstance(config, Config):
        cfg = copy.deepcopy(config)
    else:
        path = find_config(config)
        for folder in (Path.cwd(), path.resolve().parent):
            if str(folder) not in sys.path:
                sys.path.append(str(folder))
        cfg = _load_file(path)
    if overrides:
        check_overrides(cfg, overrides)
        cfg.merge_from_dict(overrides)
    return cfg


def find_config(config: str | Path) -> Path:
    """The file of a config, given as a path or by the name of one that comes with the package ('crate_base_in1k')."""
    path = Path(config)
    if path.is_file():
        return path
    files = (p for p in sorted(CONFIGS.rglob("*.py")) if "_base_" not in p.parts)
    shipped = {str(p.relative_to(CONFIGS).with_suffix("")): p for p in files}
    name = str(path.with_suffix("")) if path.suffix == ".py" else str(path)
    if name in shipped:
        return shipped[name]
    raise ValueError(f"config {config} does not exist: {suggest(Path(name).name, list(shipped))}")


def _load_file(path: Path) -> Config:
    try:
        return Config.fromfile(path, lazy_import=False)
    except SyntaxError as error:
        # MMEngine names a temporary copy of the file, or of one of its bases.
        raise ValueError(_find_syntax_error(path) or f"config {path} is not valid: {error.msg}") from None
    except ImportError as error:
        cause = error.__cause__ or error
        while cause.__context__ is not None:  # MMEngine replaces the error of the user's own file by advice on paths
            cause = cause.__context__
        raise ValueError(f"config {path}: its custom_imports fail: {type(cause).__name__}: {cause}") from error
    except Exception as error:
        raise ValueError(f"config {path} cannot be loaded: {type(error).__name__}: {error}") from error


def _find_syntax_error(path: Path) -> str | None:
    """Name the file, of a config and those it inherits from, that is not valid Python, and the line; None if none."""
    try:
        tree = ast.parse(path.read_text())
    except SyntaxError as error:
        return f"config {path}, line {error.lineno} is not valid Python: {error.msg}"
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "_base_":
            bases = ast.literal_eval(node.value)
            found = (_find_syntax_error(path.parent / base) for base in ([bases] if isinstance(bases, str) else bases))
            return next(filter(None, found), None)
    return None


# Overrides ---------------------------------------------------------------------------------------------------------

# What a dict without a ``type`` is passed to.
_UNTYPED = {
    "": Runner.__init__,
    "randomness": Runner.set_randomness,
    "optim_wrapper": OptimWrapper.__init__,
    "train_cfg": EpochBasedTrainLoop.__init__,
    "val_cfg": ValLoop.__init__,
    "test_cfg": TestLoop.__init__,
    **dict.fromkeys(LOADERS, DataLoader.__init__),
}
_EXTRA = {
    "": ["data_root", "global_batch_size", "max_batch_per_device", "ema_momentum", "custom_imports"]
    + ["model_wrapper_cfg", "sync_bn", "find_unused_parameters", "activation_checkpointing"],
    "optim_wrapper": ["type", "constructor", "paramwise_cfg", "dtype", "loss_scale"],
    "param_scheduler": ["convert_to_iter_based", "by_epoch", "begin", "end"],
    **{name: ["dataset", "num_batch_per_epoch"] for name in LOADERS},
}
_DERIVED = {
    "train_dataloader.batch_size": "global_batch_size and the number of processes",
    "optim_wrapper.accumulative_counts": "global_batch_size and max_batch_per_device",
    "train_cfg.micro_batches": "global_batch_size and max_batch_per_device",
}


def check_overrides(cfg: Config, overrides: dict) -> None:
    """Raise ``ValueError`` if an override names a setting that neither the config nor what it configures has.

    MMEngine would create the misspelt key and train on without it.
    """
    root = copy.deepcopy(cfg._cfg_dict)
    # A changed type comes first: the settings of the new one are then known.
    for key, value in sorted(overrides.items(), key=lambda item: not item[0].endswith(".type")):
        if key in _DERIVED:
            raise ValueError(f"--cfg-options {key} cannot be set: it follows from {_DERIVED[key]}")
        node, parent, walked = root, None, []
        for part in key.split("."):
            where = ".".join(walked)
            if isinstance(node, (list, tuple)):
                if not part.isdigit() or int(part) >= len(node):
                    raise ValueError(f"--cfg-options {key}: {where} is a list of {len(node)}, it has no entry {part!r}")
                node = node[int(part)]
            elif isinstance(node, dict) and part in node:
                node, parent = node[part], node
            elif isinstance(node, dict):
                known = _settings(node, where)
                if known is None or part in known:
                    node = None  # a setting that the config leaves at its default, or free form: nothing to check below
                    break
                raise ValueError(
                    f"--cfg-options {key}: {where or 'the config'} has no {part!r}: {suggest(part, known)}"
                )
            elif node is not None:
                raise ValueError(f"--cfg-options {key}: {where} is {node!r}, it has no {part!r}")
            else:
                break
            walked.append(part)
        if key.endswith(".type") and parent is not None:
            parent["type"] = value
        if isinstance(node, (int, float)) and isinstance(value, str):
            raise ValueError(f"--cfg-options {key}: a {type(node).__name__} is wanted, as {node}; got {value!r}")


def _settings(node: dict, where: str) -> list[str] | None:
    """The names that a config dict may have, or None where they cannot be told."""
    known = set(node) | set(_EXTRA.get(where, ()))
    target = _UNTYPED.get(where)
    if "type" in node:
        target = _registered(node["type"])
    if target is None:
        return None if "type" in node else sorted(known)
    parameters = inspect.signature(target).parameters.values()
    known.update(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    if any(p.kind is p.VAR_KEYWORD for p in parameters) and inspect.isclass(target):
        # Keywords that are passed on: to the next class of the same name or purpose, if there is one.
        base = target.__mro__[1]
        known.update(inspect.signature(base).parameters if base is not object else ())
    return sorted(known - {"self"})


def _registered(name) -> type | None:
    """The class that a ``type`` names, in whichever registry it is."""
    if not isinstance(name, str):
        return name
    for candidate in vars(registry).values():
        if isinstance(candidate, mmengine_registry.Registry) and name in candidate.names():
            return candidate.get(name)
    return None


# Ready for the Runner ----------------------------------------------------------------------------------------------


def prepare(cfg: Config, world_size: int | None = None) -> Config:
    """Return a copy of a user's config with all that follows from it filled in.

    The batch of each device and its micro-batches follow from ``global_batch_size``, ``max_batch_per_device`` and the
    number of processes; ``data_root`` goes to every dataset that takes a ``root``; loaders get the collate function and
    the worker set-up that our batches need; ``ema_momentum`` becomes a hook.

    Raises:
        ValueError: the batch does not divide, or a part that training needs is missing.
    """
    # The copy's text is not prettified: MMEngine does that at every checkpoint, for half a second.
    cfg = Config(copy.deepcopy(cfg.to_dict()), filename=cfg.filename, format_python_code=False)
    cfg.setdefault("default_scope", registry.SCOPE)
    stem = Path(cfg.filename).stem if cfg.filename else "crate_mm"
    cfg.setdefault("work_dir", str(Path("work_dirs") / stem))
    # MMEngine shares state between Runners of one name, which without this are those made in the same second.
    cfg.experiment_name = f"{stem}_{uuid.uuid4().hex[:8]}"
    for name in LOADERS:
        if cfg.get(name):
            _prepare_loader(cfg[name], cfg.get("data_root"))
    if cfg.get("train_dataloader"):
        _prepare_batch(cfg, world_size or get_world_size())
    if cfg.get("ema_momentum"):
        cfg.custom_hooks = [*cfg.get("custom_hooks", []), {"type": "EMAHook", "momentum": cfg.ema_momentum}]
    return cfg


def _prepare_loader(loader: dict, data_root: str | None) -> None:
    loader.setdefault("collate_fn", {"type": "default_collate"})
    loader.setdefault("worker_init_fn", {"type": f"{registry.SCOPE}.keep_worker_seed"})
    if loader.get("num_workers", 0) == 0:
        loader["persistent_workers"] = False
    source = loader["dataset"].get("source", loader["dataset"])
    source_class = DATASETS.get(source["type"])
    if "root" in inspect.signature(source_class).parameters:
        source.setdefault("root", data_root)


def _prepare_batch(cfg: Config, world_size: int) -> None:
    if not cfg.get("global_batch_size"):
        raise ValueError("the config has no global_batch_size: state the images of one optimisation step there")
    plan = plan_batch(cfg.global_batch_size, world_size, cfg.get("max_batch_per_device"))
    cfg.train_dataloader.batch_size = plan.per_device
    cfg.train_dataloader.setdefault("sampler", {"type": "GlobalBatchSampler"})
    if cfg.train_dataloader.sampler.type == "GlobalBatchSampler":
        cfg.train_dataloader.sampler.global_batch_size = plan.global_batch_size
    cfg.train_cfg.setdefault("type", "TrainLoop")
    cfg.train_cfg.micro_batches = plan.micro_batches
    cfg.optim_wrapper.accumulative_counts = plan.micro_batches
