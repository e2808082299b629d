"""Find, load, override and check configs."""

import ast
import copy
import math
import re
import sys
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from mmengine.config import Config

import crate_mm

from ..io.files import atomic_file, home
from ..io.log import print_log
from ..io.untrusted import sanitized
from ..registry import head_for, suggest
from .overrides import apply_overrides, check_overrides

_PACKAGE = Path(crate_mm.__file__).parent
# An installed wheel has the configs inside the package, a clone next to it.
CONFIGS = next(p for p in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if p.is_dir())


def load_config(
    config: str | Path | Config,
    overrides: dict | None = None,
    mixin: str | None = None,
    model: dict | None = None,
    full_model: bool = False,
) -> Config:
    """Load a config file, or a config of the package by name, and apply overrides.

    If the config has a head and ``model`` does not, the model becomes a classifier (see ``as_classifier``). For
    ``custom_imports``, the folder of the file and the current folder are added to ``sys.path``.

    Args:
        config: path, name or loaded config.
        overrides: values by key, as from ``--cfg-options``; applied last.
        mixin: name of a file in ``configs/_base_`` to merge into the config.
        model: model config to use if ``config`` does not define its model. Its components are used, but not its
            training settings. Settings in ``config`` take precedence.
        full_model: keep ``model`` unchanged, head included; for tests.

    Raises:
        ValueError: the file does not exist or has an error, or an override names an unknown setting.
    """
    if isinstance(config, Config):
        cfg = copy.deepcopy(config)
    else:
        path = find_config(config)
        for folder in (Path.cwd(), path.resolve().parent):
            if str(folder) not in sys.path:
                sys.path.append(str(folder))
        cfg = _load_file(path)
    if not isinstance(cfg.get("model") or {}, dict):
        raise ValueError(f"config {config}: model must be a dict(type=...), got {cfg.model!r}")
    if model is not None and not defines_model(cfg):
        config_model = cfg.get("model") or {}
        if "head" in config_model and "head" not in model:
            model = as_classifier(model)
        elif "head" in config_model and not full_model:
            model = with_new_head(model)
        parts = {key: value for key, value in model.items() if key == "type" or isinstance(value, dict)}
        cfg.model = model if full_model else parts
        cfg.merge_from_dict({} if full_model else {"model": config_model})
    if mixin:
        cfg.merge_from_dict(Config.fromfile(CONFIGS / "_base_" / mixin, lazy_import=False).to_dict())
    if overrides:
        apply_overrides(cfg, check_overrides(cfg, overrides))
    return cfg


def as_classifier(model: dict) -> dict:
    """Return a classifier with the backbone of another task's model, such as a masked autoencoder, and a new head.

    The head is linear and has the arguments that the backbone specifies (``head_for``).

    Raises:
        ValueError: the model has no backbone.
    """
    if not isinstance(model.get("backbone"), dict) or "type" not in model["backbone"]:
        raise ValueError(f"the config needs a classifier, but the model {model.get('type')} has no backbone")
    parts = {key: model[key] for key in ("backbone", "preprocessor") if key in model}
    head = {"type": "LinearHead", **head_for(model["backbone"]["type"])}
    return {"type": "ImageClassifier", **parts, "head": head}


def with_new_head(model: dict) -> dict:
    """Add to a classifier's linear head the arguments that its backbone specifies and the head does not set."""
    backbone, head = model.get("backbone"), model.get("head")
    valid = isinstance(backbone, dict) and "type" in backbone and isinstance(head, dict)
    if not valid or head.get("type") != "LinearHead":
        return model
    return {**model, "head": {**head_for(backbone["type"]), **head}}


def defines_model(cfg: Config) -> bool:
    """Return whether a config defines its model; a transfer config takes its model from a checkpoint."""
    return "type" in (cfg.get("model") or {})


def require_model(cfg: Config) -> None:
    """Raise ``ValueError`` unless a config has a model and defines it."""
    if not cfg.get("model"):
        raise ValueError("the config has no model")
    if not defines_model(cfg):
        raise ValueError(
            "the config does not define its model: use --load-from CHECKPOINT for a checkpoint's model, or --model "
            "CONFIG for another config's model"
        )


def packaged_configs() -> dict[str, Path]:
    """Return the configs of the package: name ('transfer/pets') -> file."""
    files = (p for p in sorted(CONFIGS.rglob("*.py")) if "_base_" not in p.parts)
    return {str(p.relative_to(CONFIGS).with_suffix("")): p for p in files}


def find_config(config: str | Path) -> Path:
    """Return the file of a config, given as a path or as the name of a config of the package ('crate_base_in1k')."""
    path = Path(home(config))
    if path.is_file():
        return path
    packaged = packaged_configs()
    name = str(path.with_suffix("")) if path.suffix == ".py" else str(path)
    if name in packaged:
        return packaged[name]
    raise ValueError(f"config {config} does not exist: {suggest(Path(name).name, list(packaged))}")


def _load_file(path: Path) -> Config:
    try:
        cfg = Config.fromfile(path, lazy_import=False)
    except SyntaxError as error:
        # MMEngine's error names a temporary copy of the file, or of one of its bases.
        imported = f"config {path} imports {error.filename}, line {error.lineno} is not valid Python: {error.msg}"
        raise ValueError(_find_syntax_error(path) or imported) from None
    except ImportError as error:
        cause = error.__cause__ or error
        while cause.__context__ is not None:  # MMEngine replaces the error in the user's file by advice on paths
            cause = cause.__context__
        raise ValueError(f"config {path}: its custom_imports fail: {type(cause).__name__}: {cause}") from error
    except RecursionError:
        raise ValueError(f"config {path}: its _base_ files name each other in a circle") from None
    except Exception as error:
        if message := _find_syntax_error(path):  # such as bytes that are not UTF-8
            raise ValueError(message) from None
        if re.search(r"^\s*with read_base\(\)", path.read_text(encoding="utf-8"), re.MULTILINE):
            raise ValueError(
                f'config {path} uses read_base(), MMEngine\'s other config style: write _base_ = ["..."], and each '
                'type as a string, such as type="CRATE"'
            ) from None
        raise ValueError(f"config {path} cannot be loaded: {type(error).__name__}: {error}") from error
    # MMEngine removes a file's modules and functions, but not its classes.
    for name in [name for name, value in cfg.items() if isinstance(value, type)]:
        del cfg._cfg_dict[name]
    _check_imported_files(cfg, path)
    cfg = Config(require_plain_data(cfg.to_dict(), f"config {path}"), cfg_text=cfg.text, filename=cfg.filename)
    _follow_validation(cfg, path)
    return cfg


def _check_imported_files(cfg: Config, path: Path) -> None:
    """Raise ``ValueError`` if ``custom_imports`` names a file beside the config, but Python imported another file."""
    names = (cfg.get("custom_imports") or {}).get("imports", [])
    for name in [names] if isinstance(names, str) else names:
        beside = path.resolve().parent.joinpath(*name.split(".")).with_suffix(".py")
        imported = getattr(sys.modules.get(name), "__file__", None)
        if beside.is_file() and not (imported and beside.samefile(imported)):
            raise ValueError(
                f"config {path}: custom_imports names {name}, which is {beside}, but Python has imported "
                f"{imported or name} under that name: rename the file, or load the config in a new process"
            )


def _follow_validation(cfg: Config, path: Path) -> None:
    """Apply a file's changes to the validation to the test too, in place, if the two are equal in its bases.

    A base often has ``test_dataloader = val_dataloader``. Python evaluates this line before the file changes the
    validation. A file that assigns ``test_dataloader``, even ``dict()``, keeps its own. The same holds for evaluators.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assigned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    kinds = [kind for kind in ("dataloader", "evaluator") if f"test_{kind}" not in assigned]
    base = {}
    for file in _bases(tree, path) if kinds else ():
        base |= _load_file(file).to_dict() if file.is_file() else {}
    for kind in kinds if base else ():
        val, test = f"val_{kind}", f"test_{kind}"
        if val not in assigned:
            if test in base:
                cfg[test] = base[test]  # which may follow the base's validation
        elif cfg[val] is not None and base.get(val) is not None and base[val] == base.get(test):
            if cfg[val] != cfg[test]:
                _log_once(
                    f"config {path} changes {val}: {test} follows it, because the two are equal in its base; to keep "
                    f"the base's settings, write {test} = dict()"
                )
            cfg[test] = copy.deepcopy(cfg[val])


@cache
def _log_once(message: str) -> None:
    print_log(message, "current")


def require_plain_data(value: Any, where: str) -> Any:
    """Return settings as plain data that survives a dump: paths become text, NumPy scalars become Python's.

    Args:
        value: settings.
        where: beginning of the error message, which names the setting.

    Raises:
        ValueError: a setting is not plain data.
    """
    if isinstance(value, dict):
        return {
            key: require_plain_data(inner, f"{where}{'.' if ': ' in where else ': '}{key}")
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(require_plain_data(inner, f"{where}.{number}") for number, inner in enumerate(value))
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, set, frozenset, range, slice)):
        return value
    text = sanitized(repr(value), 80)
    raise ValueError(f"{where} is {text}, not plain data: a config names objects by strings, such as type='CRATE'")


class _FloatLiteral(float):
    """Float with a repr that Python can evaluate, also for infinity and NaN."""

    def __repr__(self) -> str:
        return f"float('{float(self)}')"


def to_source(cfg: Config) -> str:
    """Return a config, including its bases, as Python source that can be loaded again."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: convert(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(convert, value))
        if isinstance(value, PurePath):
            return str(value)
        return _FloatLiteral(value) if isinstance(value, float) and not math.isfinite(value) else value

    return Config(convert(cfg.to_dict()), filename=cfg.filename).dump()


def dump(cfg: Config, path: Path) -> None:
    """Write a config so that it can be loaded again."""
    text = to_source(cfg)
    with atomic_file(path, text=True) as file:
        file.write(text)


def _find_syntax_error(path: Path) -> str | None:
    """Return an error message if a config or one of its bases is not valid Python in UTF-8, else None."""
    if not path.is_file():
        return None
    try:
        text = path.read_bytes().decode()
        if text.startswith("\ufeff"):
            return f"config {path} begins with a byte order mark: save it as UTF-8 without BOM"
        tree = ast.parse(text)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return f"config {path}, line {line} is not UTF-8: save it as UTF-8"
    except SyntaxError as error:
        return f"config {path}, line {error.lineno} is not valid Python: {error.msg}"
    return next(filter(None, map(_find_syntax_error, _bases(tree, path))), None)


def _bases(tree: ast.Module, path: Path) -> list[Path]:
    """Return the files in a config's ``_base_``; an empty list if its value is not a literal."""
    assigned = (node for node in tree.body if isinstance(node, ast.Assign))
    value = next((node.value for node in assigned if getattr(node.targets[0], "id", None) == "_base_"), None)
    try:
        names = ast.literal_eval(value) if value else []
        return [path.parent / name for name in ([names] if isinstance(names, str) else names)]
    except (ValueError, TypeError):
        return []
