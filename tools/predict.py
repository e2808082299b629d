"""What the installed command ``crate-mm predict`` does too: see ``crate_mm/cli/predict.py``."""

from crate_mm.cli.predict import main

if __name__ == "__main__":
    main()
