"""What the installed command ``crate-mm knn`` does too: see ``crate_mm/cli/knn.py``."""

from crate_mm.cli.knn import main

if __name__ == "__main__":
    main()
