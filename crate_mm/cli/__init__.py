"""The commands: each file one, as ``crate-mm <name>`` and ``tools/<name>.py``."""

import os

# Before PyTorch loads: its threads wait for each other by spinning, which takes the cores from every other process for
# a hundred times as long as a step has work. This many turns are as good where nobody else wants the cores.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
