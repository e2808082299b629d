"""The commands: each file one, as ``crate-mm <name>`` and ``tools/<name>.py``.

A setting of the environment that would end every command is replaced here, before a library reads it. ``doctor`` says
what was replaced.
"""

import getpass
import os
import sys
import tempfile

from ..io.files import LONGEST_TEMP


def replacements() -> dict[str, tuple[str, str]]:
    """New values for variables of the environment that no command could work with, each with the reason."""
    new = {}
    backend = os.environ.get("MPLBACKEND", "")
    # A notebook's back end is for its kernel alone: matplotlib does not load where its package is missing.
    if backend and backend.lower() != "agg" and "ipykernel" not in sys.modules:
        new["MPLBACKEND"] = "agg", "the commands draw into files"
    for name in ("TMPDIR", "TEMP", "TMP"):
        if os.name == "posix" and len(os.fsencode(os.environ.get(name, ""))) > LONGEST_TEMP:
            new[name] = "/tmp", f"loaders' workers need a path of at most {LONGEST_TEMP} bytes for their sockets"
    if not os.path.isabs(os.path.expanduser("~")):
        new["HOME"] = "/", "the system knows no home folder of this user"
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        number = os.getuid() if hasattr(os, "getuid") else ""
        new["USER"] = f"uid{number}", "the system knows no name of this user"
    return new


REPLACED = replacements()
os.environ.update({name: value for name, (value, _) in REPLACED.items()})
if REPLACED:
    tempfile.tempdir = None  # Python may have looked for it before

# Before PyTorch loads: its threads wait for each other by spinning, which takes the cores from every other process for
# a hundred times as long as a step has work. This many turns are as good where nobody else wants the cores.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
