"""The command ``crate-mm report`` from a clone; see ``crate_mm/cli/report.py``."""

from crate_mm.cli.report import main

if __name__ == "__main__":
    main()
