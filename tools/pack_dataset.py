"""The command ``crate-mm pack_dataset`` from a clone; see ``crate_mm/cli/pack_dataset.py``."""

from crate_mm.cli.pack_dataset import main

if __name__ == "__main__":
    main()
