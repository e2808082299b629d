"""The commands: one module each, run as ``crate-mm <name>`` or ``tools/<name>.py``.

Environment variables that would make every command fail are replaced here, before a library reads them. ``doctor``
lists the replacements.
"""

import getpass
import os
import sys
import tempfile

from ..io.files import MAX_TEMP_BYTES


def replacements() -> dict[str, tuple[str, str]]:
    """Return the environment variables to replace: name -> (new value, reason)."""
    new = {}
    backend = os.environ.get("MPLBACKEND", "")
    # A notebook's backend exists only inside the notebook's kernel. Elsewhere, matplotlib cannot import the backend.
    if backend and backend.lower() != "agg" and "ipykernel" not in sys.modules:
        new["MPLBACKEND"] = "agg", "the commands draw into files"
    for name in ("TMPDIR", "TEMP", "TMP"):
        if os.name == "posix" and len(os.fsencode(os.environ.get(name, ""))) > MAX_TEMP_BYTES:
            new[name] = "/tmp", f"sockets of data-loader workers need a path of at most {MAX_TEMP_BYTES} bytes"
    if not os.path.isabs(os.path.expanduser("~")):
        new["HOME"] = "/", "the system has no home directory for this user"
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        uid = os.getuid() if hasattr(os, "getuid") else ""
        new["USER"] = f"uid{uid}", "the system has no name for this user"
    return new


REPLACED = replacements()
os.environ.update({name: value for name, (value, _) in REPLACED.items()})
if REPLACED:
    tempfile.tempdir = None  # discard Python's cached value

# Set before PyTorch loads. OpenMP threads busy-wait, which can make a step on shared cores a hundred times slower. On
# cores that are not shared, 3000 spins are as fast as the default.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
