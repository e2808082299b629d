"""The command ``crate-mm bench`` from a clone; see ``crate_mm/cli/bench.py``."""

from crate_mm.cli.bench import main

if __name__ == "__main__":
    main()
