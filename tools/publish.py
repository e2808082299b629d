"""The command ``crate-mm publish`` from a clone; see ``crate_mm/cli/publish.py``."""

from crate_mm.cli.publish import main

if __name__ == "__main__":
    main()
