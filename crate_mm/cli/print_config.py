"""Print a config as it is when all that it builds on and all overrides are in it, and what follows from it.

python tools/print_config.py configs/crate_base_in1k.py --processes 16 --cfg-options max_batch_per_device=64

What is printed is a config itself: what follows stands in comments.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from ..config import defines_model, load_config, plan_batch, resolve_config
from ..config.load import to_source
from ..config.settings import DERIVED, GUARDS, SETTINGS
from ..io.untrusted import say
from .options import Parser, add_cfg_options, positive_int, user_errors

BY_END = {
    "num_workers": "the cores of this machine, for one process",
    "pin_memory": "whether there is a GPU",
    "root": "data_root",
}
BY_END |= {"global_batch_size": "global_batch_size", "work_dir": "the config's name"}
NOT_SHOWN = ("experiment_name", "custom_hooks")  # drawn at each start; the guards, which are counted


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("config", help="config file, or the name of one that comes with the package")
    parser.add_argument("--processes", type=positive_int, default=1, help="of the run that it is for (default: 1)")
    add_cfg_options(parser)
    return parser.parse_args()


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a config by their full names, as overrides have them."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def what_follows(cfg: Any, processes: int) -> list[tuple[str, Any, str]]:
    """Settings that a run has and its config does not: (full name, value, what it follows from)."""
    own = dict(flat(cfg.to_dict()))
    defaults = {setting.name for setting in SETTINGS}
    found = []
    for name, value in flat(resolve_config(cfg, processes).to_dict()):
        if name.split(".")[0] in NOT_SHOWN or (name in own and own[name] == value):
            continue
        last = name.rpartition(".")[2]
        source = DERIVED.get(name) or BY_END.get(last) or ("the default" if name in defaults else "what a run needs")
        found.append((name, value, source))
    return found


def main() -> None:
    args = parse_args()
    with user_errors():
        cfg = load_config(args.config, args.cfg_options)
        whole = defines_model(cfg)
        follows = what_follows(cfg, args.processes) if whole else []
        print(to_source(cfg))
        if not whole:
            say("# The model is a checkpoint's, by --load-from: what follows is known when there is one.")
            return
        say(f"# What follows, for {args.processes} process{'es' if args.processes > 1 else ''}:")
        for name, value, source in follows:
            say(f"#   {name} = {value!r}  ({source})")
        if cfg.get("train_dataloader"):
            plan = plan_batch(cfg.global_batch_size, args.processes, cfg.get("max_batch_per_device"))
            say(f"#   images of a step: {plan}")
        on = [name for name in GUARDS if (cfg.get("guards") or {}).get(name, {}) is not None]
        say(f"#   guards that are on: {', '.join(on)}")


if __name__ == "__main__":
    main()
