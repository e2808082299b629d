"""What the installed command ``crate-mm doctor`` does too: see ``crate_mm/cli/doctor.py``."""

from crate_mm.cli.doctor import main

if __name__ == "__main__":
    main()
