"""The command ``crate-mm average`` from a clone; see ``crate_mm/cli/average.py``."""

from crate_mm.cli.average import main

if __name__ == "__main__":
    main()
