"""The command ``crate-mm predict`` from a clone; see ``crate_mm/cli/predict.py``."""

from crate_mm.cli.predict import main

if __name__ == "__main__":
    main()
