"""The command ``crate-mm neighbours`` from a clone; see ``crate_mm/cli/neighbours.py``."""

from crate_mm.cli.neighbours import main

if __name__ == "__main__":
    main()
