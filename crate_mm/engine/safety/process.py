"""Save and restore process-wide settings, so that a run leaves the settings of the calling program unchanged."""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torch.multiprocessing
from torch.backends import cuda, cudnn

from ...io.files import MAX_TEMP_BYTES

# Pairs (getter, setter). Of alternative pairs, the first whose getter works is used: PyTorch raises an error for the
# older names of TF32 settings after a program has used the newer ones (``fp32_precision``).
Access = tuple[Callable[[], Any], Callable[[Any], Any]]


def _attribute(owner: Any, name: str) -> Access:
    return partial(getattr, owner, name), partial(setattr, owner, name)


def _settings() -> list[list[Access]]:
    precision = (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
    matmul, convolution = _attribute(cuda.matmul, "allow_tf32"), _attribute(cudnn, "allow_tf32")
    settings = [
        [_attribute(cudnn, "benchmark")],
        [_attribute(cudnn, "deterministic")],
        [(_algorithms, lambda flags: torch.use_deterministic_algorithms(flags[0], warn_only=flags[1]))],
        [precision, matmul, _attribute(cuda.matmul, "fp32_precision")],
        [convolution, _attribute(getattr(cudnn, "conv", None), "fp32_precision")],
        [convolution, _attribute(getattr(cudnn, "rnn", None), "fp32_precision")],
        [
            (
                partial(torch.multiprocessing.get_start_method, allow_none=True),
                partial(torch.multiprocessing.set_start_method, force=True),
            )
        ],
    ]
    with suppress(ImportError):  # MMEngine sets OpenCV's number of threads if OpenCV is installed
        import cv2

        settings.append([(cv2.getNumThreads, cv2.setNumThreads)])
    return settings


def _algorithms() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


class ProcessSettings:
    """Snapshot of cuDNN flags, TF32, determinism, the multiprocessing start method and OpenCV's number of threads.

    Random states are not included.
    """

    def __init__(self) -> None:
        self._values: list[tuple[Callable[[Any], Any], Any]] = []
        for alternatives in _settings():
            for read, write in alternatives:
                with suppress(RuntimeError, AttributeError):
                    self._values.append((write, read()))
                    break

    def apply(self) -> None:
        """Restore the settings."""
        for write, value in self._values:
            write(value)


def check_temp_dir() -> None:
    """Raise ``ValueError`` if the path of the temporary directory is too long: data-loader workers would hang."""
    folder = tempfile.gettempdir()
    if os.name == "posix" and len(os.fsencode(folder)) > MAX_TEMP_BYTES:
        raise ValueError(
            f"the path of the temporary directory {folder} is too long for the sockets of data-loader workers (at most "
            f"{MAX_TEMP_BYTES} bytes): set TMPDIR=/tmp or num_workers=0"
        )
