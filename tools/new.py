"""The command ``crate-mm new`` from a clone; see ``crate_mm/cli/new.py``."""

from crate_mm.cli.new import main

if __name__ == "__main__":
    main()
