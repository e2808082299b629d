"""The command ``crate-mm demo`` from a clone; see ``crate_mm/cli/demo.py``."""

from crate_mm.cli.demo import main

if __name__ == "__main__":
    main()
