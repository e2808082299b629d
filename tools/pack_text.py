"""The command ``crate-mm pack-text`` from a clone; see ``crate_mm/cli/pack_text.py``."""

from crate_mm.cli.pack_text import main

if __name__ == "__main__":
    main()
