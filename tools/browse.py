"""The command ``crate-mm browse`` from a clone; see ``crate_mm/cli/browse.py``."""

from crate_mm.cli.browse import main

if __name__ == "__main__":
    main()
