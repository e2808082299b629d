"""The command ``crate-mm analyze`` from a clone; see ``crate_mm/cli/analyze.py``."""

from crate_mm.cli.analyze import main

if __name__ == "__main__":
    main()
