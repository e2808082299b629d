"""What the installed command ``crate-mm convert_official`` does too: see ``crate_mm/cli/convert_official.py``."""

from crate_mm.cli.convert_official import main

if __name__ == "__main__":
    main()
