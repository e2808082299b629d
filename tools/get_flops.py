"""The command ``crate-mm get_flops`` from a clone; see ``crate_mm/cli/get_flops.py``."""

from crate_mm.cli.get_flops import main

if __name__ == "__main__":
    main()
