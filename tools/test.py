"""The command ``crate-mm test`` from a clone; see ``crate_mm/cli/test.py``."""

from crate_mm.cli.test import main

if __name__ == "__main__":
    main()
