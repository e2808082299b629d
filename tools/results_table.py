"""The command ``crate-mm results_table`` from a clone; see ``crate_mm/cli/results_table.py``."""

from crate_mm.cli.results_table import main

if __name__ == "__main__":
    main()
