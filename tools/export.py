"""The command ``crate-mm export`` from a clone; see ``crate_mm/cli/export.py``."""

from crate_mm.cli.export import main

if __name__ == "__main__":
    main()
