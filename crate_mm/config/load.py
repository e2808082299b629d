"""Configs: found, loaded, overridden and checked."""

import ast
import copy
import math
import re
import sys
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from mmengine.config import Config

import crate_mm

from ..io.files import atomic_file, home
from ..io.untrusted import sanitized
from ..registry import head_for, suggest
from .overrides import apply_overrides, check_overrides

_PACKAGE = Path(crate_mm.__file__).parent
# An installed wheel has the configs inside the package, a clone beside it.
CONFIGS = next(p for p in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if p.is_dir())


def load_config(
    config: str | Path | Config,
    overrides: dict | None = None,
    mixin: str | None = None,
    model: dict | None = None,
    whole: bool = False,
) -> Config:
    """Load a config file, or one of the package's by its name, and apply ``--cfg-options`` to it.

    Before these come ``model``, for a config that does not name its model, as a transfer's, and a ``mixin``, a file of
    ``configs/_base_`` that changes any config. Of ``model`` the parts are taken, not the settings of its training, and
    what the config says of them counts; ``whole``, as for a test, takes it as it is. A config with a head, such as a
    transfer's, takes the backbone of a model that has none (see ``as_classifier``).

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
    if not isinstance(cfg.get("model") or {}, dict):
        raise ValueError(f"config {config}: model must be a dict(type=...), it is {cfg.model!r}")
    if model is not None and not defines_model(cfg):
        own = cfg.get("model") or {}
        if "head" in own and "head" not in model:
            model = as_classifier(model)
        elif "head" in own and not whole:
            model = with_new_head(model)
        parts = {key: value for key, value in model.items() if key == "type" or isinstance(value, dict)}
        cfg.model = model if whole else parts
        cfg.merge_from_dict({} if whole else {"model": own})
    if mixin:
        cfg.merge_from_dict(Config.fromfile(CONFIGS / "_base_" / mixin, lazy_import=False).to_dict())
    if overrides:
        apply_overrides(cfg, check_overrides(cfg, overrides))
    return cfg


def as_classifier(model: dict) -> dict:
    """A classifier that goes on from a model of another task, such as a masked autoencoder: a new linear head on its
    backbone, with the arguments that the backbone says (``head_for``).

    Raises:
        ValueError: the model has no backbone.
    """
    if not isinstance(model.get("backbone"), dict) or "type" not in model["backbone"]:
        raise ValueError(f"the config wants a classifier, and the model {model.get('type')} has no backbone for one")
    parts = {key: model[key] for key in ("backbone", "preprocessor") if key in model}
    head = {"type": "LinearHead", **head_for(model["backbone"]["type"])}
    return {"type": "ImageClassifier", **parts, "head": head}


def with_new_head(model: dict) -> dict:
    """A classifier whose linear head is to be a new one: what its family says of a head counts where the model says
    nothing, as one of other code's weights may not."""
    backbone, head = model.get("backbone"), model.get("head")
    known = isinstance(backbone, dict) and "type" in backbone and isinstance(head, dict)
    if not known or head.get("type") != "LinearHead":
        return model
    return {**model, "head": {**head_for(backbone["type"]), **head}}


def defines_model(cfg: Config) -> bool:
    """Whether a config says what its model is; a transfer's leaves that to a checkpoint."""
    return "type" in (cfg.get("model") or {})


def require_model(cfg: Config) -> None:
    """Raise ``ValueError`` unless a config has a model, and says what it is."""
    if not cfg.get("model"):
        raise ValueError("the config has no model")
    if not defines_model(cfg):
        raise ValueError(
            "the config does not name its model: --load-from CHECKPOINT takes that of a checkpoint, --model CONFIG "
            "that of another config"
        )


def find_config(config: str | Path) -> Path:
    """The file of a config, given as a path or by the name of one that comes with the package ('crate_base_in1k')."""
    path = Path(home(config))
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
        cfg = Config.fromfile(path, lazy_import=False)
    except SyntaxError as error:
        # MMEngine names a temporary copy of the file, or of one of its bases.
        imported = f"config {path} imports {error.filename}, line {error.lineno}, which is not valid: {error.msg}"
        raise ValueError(_find_syntax_error(path) or imported) from None
    except ImportError as error:
        cause = error.__cause__ or error
        while cause.__context__ is not None:  # MMEngine replaces the error of the user's own file by advice on paths
            cause = cause.__context__
        raise ValueError(f"config {path}: its custom_imports fail: {type(cause).__name__}: {cause}") from error
    except Exception as error:
        if unreadable := _find_syntax_error(path):  # bytes that are no UTF-8 come first
            raise ValueError(unreadable) from None
        if re.search(r"^\s*with read_base\(\)", path.read_text(encoding="utf-8"), re.MULTILINE):
            raise ValueError(
                f'config {path} inherits by read_base(), MMEngine\'s other kind of config: write _base_ = ["..."], and '
                'each type as a string, as in type="CRATE"'
            ) from None
        raise ValueError(f"config {path} cannot be loaded: {type(error).__name__}: {error}") from error
    # MMEngine leaves out what a file imports or defines, but classes.
    for name in [name for name, value in cfg.items() if isinstance(value, type)]:
        del cfg._cfg_dict[name]
    return Config(plain(cfg.to_dict(), f"config {path}"), cfg_text=cfg.text, filename=cfg.filename)


def plain(value: Any, where: str) -> Any:
    """Settings as data that is the same when it is read again from the work folder: paths become text, NumPy's numbers
    Python's.

    Raises:
        ValueError: a setting is something else than data; ``where`` begins the sentence, and names it.
    """
    if isinstance(value, dict):
        return {key: plain(inner, f"{where}{'.' if ': ' in where else ': '}{key}") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(inner, f"{where}.{number}") for number, inner in enumerate(value))
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, set, frozenset, range, slice)):
        return value
    said = sanitized(repr(value), 80)
    raise ValueError(f"{where} is {said}, no data: a config names what it wants as text, as in type='CRATE'")


class _Written(float):
    """A number that is written as Python reads it: of an infinite one a config's text has only the name."""

    def __repr__(self) -> str:
        return f"float('{float(self)}')"


def as_text(cfg: Config) -> str:
    """A config as Python that can be loaded again, whatever it builds on included."""

    def written(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: written(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(written, value))
        if isinstance(value, PurePath):
            return str(value)
        return _Written(value) if isinstance(value, float) and not math.isfinite(value) else value

    return Config(written(cfg.to_dict()), filename=cfg.filename).dump()


def dump(cfg: Config, path: Path) -> None:
    """Write a config so that it can be loaded again."""
    text = as_text(cfg)
    with atomic_file(path, text=True) as file:
        file.write(text)


def _find_syntax_error(path: Path) -> str | None:
    """Name the file, of a config and those it inherits from, that is not valid Python in UTF-8; None if none is."""
    if not path.is_file():
        return None
    try:
        text = path.read_bytes().decode()
        if text.startswith("\ufeff"):
            return f"config {path} begins with a byte order mark: save it as UTF-8 without one"
        tree = ast.parse(text)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return f"config {path}, line {line} is no text in UTF-8: save it as UTF-8"
    except SyntaxError as error:
        return f"config {path}, line {error.lineno} is not valid Python: {error.msg}"
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "_base_":
            bases = ast.literal_eval(node.value)
            found = (_find_syntax_error(path.parent / base) for base in ([bases] if isinstance(bases, str) else bases))
            return next(filter(None, found), None)
    return None
