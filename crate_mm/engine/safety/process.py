"""What a run sets for its whole process while it lasts: the program that trains may have settings of its own."""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torch.multiprocessing
from torch.backends import cuda, cudnn

from ...io.files import LONGEST_TEMP

# Pairs of a function that reads and one that writes; of alternatives the first that can be read. PyTorch refuses to
# read TF32 by its older names once a program has used the newer ones (``fp32_precision``).
Access = tuple[Callable[[], Any], Callable[[Any], Any]]


def _attribute(owner: Any, name: str) -> Access:
    return partial(getattr, owner, name), partial(setattr, owner, name)


def _settings() -> list[list[Access]]:
    precision = (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
    matmul, convolution = _attribute(cuda.matmul, "allow_tf32"), _attribute(cudnn, "allow_tf32")
    settings = [
        [_attribute(cudnn, "benchmark")],
        [_attribute(cudnn, "deterministic")],
        [(_algorithms, lambda kept: torch.use_deterministic_algorithms(kept[0], warn_only=kept[1]))],
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
    with suppress(ImportError):  # MMEngine sets the number of its threads, where it is there
        import cv2

        settings.append([(cv2.getNumThreads, cv2.setNumThreads)])
    return settings


def _algorithms() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


class ProcessSettings:
    """cuDNN's choices, TF32, determinism, how processes start and OpenCV's threads, as they are when this is made.

    Random states are not among them: what a run draws goes on from its seed.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Callable[[Any], Any], Any]] = []
        for alternatives in _settings():
            for read, write in alternatives:
                with suppress(RuntimeError, AttributeError):
                    self._kept.append((write, read()))
                    break

    def apply(self) -> None:
        """Set them again."""
        for write, value in self._kept:
            write(value)


def check_temp_dir() -> None:
    """Raise ``ValueError`` where loaders' workers cannot hand anything on, and who waits for them waits for ever."""
    folder = tempfile.gettempdir()
    if os.name == "posix" and len(os.fsencode(folder)) > LONGEST_TEMP:
        raise ValueError(
            f"loaders' workers need a folder for temporary files whose path has at most {LONGEST_TEMP} bytes for their "
            f"sockets, {folder} is longer: set TMPDIR=/tmp, or num_workers=0"
        )
