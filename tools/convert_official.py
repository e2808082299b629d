"""The command ``crate-mm convert_official`` from a clone; see ``crate_mm/cli/convert_official.py``."""

from crate_mm.cli.convert_official import main

if __name__ == "__main__":
    main()
