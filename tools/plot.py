"""The command ``crate-mm plot`` from a clone; see ``crate_mm/cli/plot.py``."""

from crate_mm.cli.plot import main

if __name__ == "__main__":
    main()
