"""The command ``crate-mm generate`` from a clone; see ``crate_mm/cli/generate.py``."""

from crate_mm.cli.generate import main

if __name__ == "__main__":
    main()
