"""What the installed command ``crate-mm train`` does too: see ``crate_mm/cli/train.py``."""

from crate_mm.cli.train import main

if __name__ == "__main__":
    main()
