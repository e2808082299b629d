"""The command ``crate-mm knn`` from a clone; see ``crate_mm/cli/knn.py``."""

from crate_mm.cli.knn import main

if __name__ == "__main__":
    main()
