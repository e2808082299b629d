"""Write a template of a recipe, a layer, a model family or a task. The template trains without changes.

crate-mm new recipe my_recipe
crate-mm new layer my_layer
python tools/new.py family my_family --out models/my_family.py

A layer, family or task comes with a recipe that uses it, such as my_layer_config.py. No file is overwritten.
"""

import argparse
import keyword
import os
from importlib.util import find_spec
from pathlib import Path

from .. import templates
from ..config import CONFIGS
from ..io.untrusted import sanitized, say
from ..registry import BACKBONES, LAYERS, MODELS
from .options import Parser, user_errors

TEMPLATES = Path(templates.__file__).parent
REGISTRIES = {"layer": LAYERS, "family": BACKBONES, "task": MODELS}


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("kind", choices=["recipe", *REGISTRIES], help="kind of template")
    parser.add_argument("name", help="name of the module, such as my_layer; its class is then MyLayer")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: NAME.py)")
    return parser.parse_args()


def class_name(name: str) -> str:
    """Return the class name of a module: 'MyLayer' for 'my_layer'."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def new_files(kind: str, name: str, out: Path) -> dict[Path, str]:
    """Return the files to write and their text; the last one is the recipe.

    Raises:
        ValueError: a name is not a Python identifier or is taken, or a file exists.
    """
    for text in (name, out.stem):
        if not text.isidentifier() or keyword.iskeyword(text) or out.suffix != ".py":
            raise ValueError(f"expected a Python name such as my_{kind}, and a file such as my_{kind}.py, got {text!r}")
    if kind in REGISTRIES and class_name(name) in REGISTRIES[kind].names():
        raise ValueError(f"{class_name(name)} is registered already: choose another name than {name}")
    files = {out: kind}
    if kind in REGISTRIES:
        files[out.with_name(f"{out.stem}_config.py")] = f"{kind}_config"
    for path in files:
        if path.exists():
            raise ValueError(f"{sanitized(path)} exists: choose another name or --out")
    if kind in REGISTRIES and find_spec(out.stem) is not None:
        raise ValueError(f"there is a module {out.stem} already, which would be imported instead: choose another name")
    inside_clone = out.resolve().is_relative_to(CONFIGS.parent)
    configs = os.path.relpath(CONFIGS, out.resolve().parent) if inside_clone else str(CONFIGS)
    replaced = {f"my_{kind}": out.stem, class_name(f"my_{kind}"): class_name(name), '["configs/': f'["{configs}/'}
    texts = {}
    for path, template in files.items():
        texts[path] = (TEMPLATES / f"{template}.py").read_text()
        for old, new in replaced.items():
            texts[path] = texts[path].replace(old, new)
    return texts


def main() -> None:
    args = parse_args()
    with user_errors():
        files = new_files(args.kind, args.name, Path(args.out or f"{args.name}.py"))
        for path, text in files.items():
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
            say(f"wrote {sanitized(path)}")
        say(f"next: crate-mm train {sanitized(list(files)[-1])}")
