"""What the installed command ``crate-mm report`` does too: see ``crate_mm/cli/report.py``."""

from crate_mm.cli.report import main

if __name__ == "__main__":
    main()
