"""What the installed command ``crate-mm analyze`` does too: see ``crate_mm/cli/analyze.py``."""

from crate_mm.cli.analyze import main

if __name__ == "__main__":
    main()
