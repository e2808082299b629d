"""The command ``crate-mm print-config`` from a clone; see ``crate_mm/cli/print_config.py``."""

from crate_mm.cli.print_config import main

if __name__ == "__main__":
    main()
