"""The command ``crate-mm doctor`` from a clone; see ``crate_mm/cli/doctor.py``."""

from crate_mm.cli.doctor import main

if __name__ == "__main__":
    main()
