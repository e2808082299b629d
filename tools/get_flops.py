"""What the installed command ``crate-mm get_flops`` does too: see ``crate_mm/cli/get_flops.py``."""

from crate_mm.cli.get_flops import main

if __name__ == "__main__":
    main()
