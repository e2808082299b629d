"""What the installed command ``crate-mm publish`` does too: see ``crate_mm/cli/publish.py``."""

from crate_mm.cli.publish import main

if __name__ == "__main__":
    main()
