"""The command ``crate-mm train`` from a clone; see ``crate_mm/cli/train.py``."""

from crate_mm.cli.train import main

if __name__ == "__main__":
    main()
