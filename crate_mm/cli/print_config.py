"""Print a config with its base configs and overrides applied, and the settings that are derived from it.

python tools/print_config.py configs/crate_base_in1k.py --processes 16 --cfg-options max_batch_per_device=64
python tools/print_config.py --list

The output is a valid config: derived settings are comments.
"""

import argparse
import ast
from collections.abc import Iterator
from typing import Any

from ..config import defines_model, load_config, plan_batch, resolve_config
from ..config.load import packaged_configs, to_source
from ..config.settings import DERIVED, GUARDS, SETTINGS
from ..io.untrusted import say
from .options import Parser, add_shared, positive_int, user_errors

SOURCE_BY_LAST_KEY = {
    "num_workers": "the cores of this machine, for one process",
    "pin_memory": "whether there is a GPU",
    "root": "data_root",
}
SOURCE_BY_LAST_KEY |= {"global_batch_size": "global_batch_size", "work_dir": "the config's name"}
HIDDEN = ("experiment_name", "custom_hooks")  # the first is random; the second repeats the guards, listed by name


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", nargs="?", help="config file, or the name of a packaged config")
    parser.add_argument("--list", action="store_true", help="list the packaged configs instead")
    parser.add_argument("--processes", type=positive_int, default=1, help="number of processes of the run (default: 1)")
    add_shared(parser, "--cfg-options")
    args = parser.parse_args()
    if bool(args.config) == args.list:
        parser.error("expected either config or --list")
    return args


def list_configs() -> None:
    """Print the name of each packaged config with the first line of its docstring."""
    configs = packaged_configs()
    for name, file in configs.items():
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        say(f"{name:<{max(map(len, configs))}}  {docstring.partition(chr(10))[0]}")


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a config's settings as (name, value). Names are dotted, as in overrides."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def derived_settings(cfg: Any, processes: int) -> list[tuple[str, Any, str]]:
    """Return the settings that ``resolve_config`` adds or changes: (dotted name, value, source of the value)."""
    own = dict(flat(cfg.to_dict()))
    defaults = {setting.name for setting in SETTINGS}
    derived = []
    for name, value in flat(resolve_config(cfg, processes).to_dict()):
        if name.split(".")[0] in HIDDEN or (name in own and own[name] == value):
            continue
        source = DERIVED.get(name) or SOURCE_BY_LAST_KEY.get(name.rpartition(".")[2])
        derived.append((name, value, source or ("the default" if name in defaults else "needed by every run")))
    return derived


def main() -> None:
    args = parse_args()
    with user_errors():
        if args.list:
            list_configs()
            return
        cfg = load_config(args.config, args.cfg_options)
        has_model = defines_model(cfg)
        derived = derived_settings(cfg, args.processes) if has_model else []
        print(to_source(cfg))
        if not has_model:
            say("# --load-from gives the model: derived settings depend on the checkpoint that it names.")
            return
        say(f"# Derived settings, for {args.processes} process{'es' if args.processes > 1 else ''}:")
        for name, value, source in derived:
            say(f"#   {name} = {value!r}  ({source})")
        if cfg.get("train_dataloader"):
            plan = plan_batch(cfg.global_batch_size, args.processes, cfg.get("max_batch_per_device"))
            say(f"#   images per step: {plan}")
        guards = [name for name in GUARDS if (cfg.get("guards") or {}).get(name, {}) is not None]
        say(f"#   active guards: {', '.join(guards)}")
