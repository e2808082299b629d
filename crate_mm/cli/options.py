"""What the command-line tools share: their options, and errors in one sentence."""

import argparse
import io
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from ..checkpoints import CheckpointError
from ..config.kinds import Given, parse_value  # noqa: F401  the latter for scripts, see moved.py
from ..engine.doctor import emulates_bf16
from ..engine.parallel.launch import LAUNCHERS
from ..engine.safety.finite import PeerFailedError, RunStoppedError
from ..engine.safety.lock import FolderInUseError
from ..engine.safety.signals import EXIT_INTERRUPTED, RunInterruptedError
from ..io.files import home
from ..io.untrusted import sanitized, shown_lines

IN_USE = 75  # what a process of tools/torchrun.py ends with, for which the launcher may try again, or end with 2


class Parser(argparse.ArgumentParser):
    """argparse's, which shows its description as it is written, and takes a leading ``~`` for the home folder.

    All texts on these command lines are paths, or words that do not begin so.
    """

    def __init__(self, description: str | None = None, **kwargs) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def parse_args(self, *args, **kwargs) -> argparse.Namespace:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a console that is not UTF-8 would end a listing half way
                stream.reconfigure(errors="backslashreplace")
        parsed = super().parse_args(*args, **kwargs)
        for name, value in vars(parsed).items():
            if isinstance(value, str):
                setattr(parsed, name, home(value))
            elif isinstance(value, list):
                setattr(parsed, name, [home(part) if isinstance(part, str) else part for part in value])
        if getattr(parsed, "amp", False) and emulates_bf16() and not _is_one_of_the_others():
            _print("--amp: this processor has no instructions for bf16, which is emulated and slower than float32")
        return parsed

    def error(self, message: str) -> NoReturn:
        """End with one sentence in the place of argparse's usage, which ``--help`` shows, and exit code 2."""
        _say(f"error: {sanitized(message, 1000)}; see {self.prog} --help")
        sys.exit(2)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``train.py`` and ``test.py`` share, named as MMEngine's users know them."""
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: work_dirs/<config name>)")
    parser.add_argument("--amp", action="store_true", help="mixed precision: bf16, or fp16 where the GPU has no bf16")
    add_cfg_options(parser)
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none", help="what started the processes")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # older launchers pass it


class KeyValues(argparse.Action):
    """Collect KEY=VALUE pairs, the values as text. (MMEngine's own action drops spaces and cannot read dicts.)"""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for text in values:
            key, equals, value = text.partition("=")
            if not equals or not key:
                parser.error(f"{option_string} takes KEY=VALUE, got {text!r}")
            options[key] = Given(value)
        setattr(namespace, self.dest, options)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=KeyValues,
        metavar="KEY=VALUE",
        help="override settings of the config, as in train_cfg.max_epochs=10 data_root=/data/imagenet",
    )


@contextmanager
def user_errors(show_traceback: bool = False) -> Iterator[None]:
    """End the program with one clear sentence for what a user did wrong (exit code 2) or interrupted.

    The exit code is 130 after Ctrl-C and 85 after SIGTERM or SIGUSR1.

    Args:
        show_traceback: print the traceback before the sentence: once a run is under way, an error may well be ours.
            ``CRATE_MM_TRACEBACK=1`` in the environment has the same effect everywhere.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        _say(str(error) or "interrupted")
        _leave(EXIT_INTERRUPTED)
    except RunInterruptedError as error:
        # The end of another process may have the launcher send SIGTERM, which would change the exit code.
        _at_sigterm(signal.SIG_IGN)
        if not _is_one_of_the_others():
            _print(str(error))
        _leave(error.code)
    except Exception as error:
        lost = re.search("Connection (reset|closed) by peer", str(error))
        if lost or isinstance(error, PeerFailedError):
            # The one that has ended has the first word; the launcher, if there is one, ends this one meanwhile.
            _at_sigterm(signal.SIG_DFL)
            time.sleep(5)
            _say(f"error: {'another process of the run has ended, which ends this one' if lost else error}")
            _leave(1)
        own = (
            isinstance(error, (RunStoppedError, CheckpointError))
            or "UnreadableImagesError" in f"{type(error).__name__}{error}"
        )
        expected = isinstance(error, (ValueError, TypeError, KeyError, OSError, ImportError))
        if not own and (show_traceback or not expected or os.environ.get("CRATE_MM_TRACEBACK")):
            traceback.print_exc()
        _say(f"error: {_sentence(error)}")
        if isinstance(error, FolderInUseError) and "TORCHELASTIC_RUN_ID" in os.environ:
            _leave(IN_USE)
        _leave(2 if own or expected else 1)


def positive_int(text: str) -> int:
    """Read an option's whole number of at least 1, for ``type=positive``."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is wanted, got {text!r}")
    return int(text)


def check_writable(*files: str | None) -> None:
    """Raise ``ValueError`` for a file that cannot be written: better before the work than after."""
    for file in filter(None, files):
        path = Path(file)
        if path.is_dir():
            raise ValueError(f"cannot write {file}: it is a folder")
        if not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
            why = "it is read-only" if path.resolve().parent.is_dir() else "its folder does not exist"
            raise ValueError(f"cannot write {sanitized(file)}: {why}")


def _sentence(error: Exception) -> str:
    if "OutOfMemoryError" in type(error).__name__:
        return (
            "the GPU is out of memory: --cfg-options max_batch_per_device=N says what it takes, and the rest of the "
            f"batch is accumulated. {str(error).splitlines()[0]}"
        )
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "in DataLoader worker process" in text:  # PyTorch wraps a worker's error in its traceback
        text = text.strip().splitlines()[-1]
    if not isinstance(error, RunStoppedError):  # whose lists of images have lines of their own
        text = sanitized(text, 10_000)
    return text or type(error).__name__


def _is_one_of_the_others() -> bool:
    return os.environ.get("RANK", "0") not in ("", "0")


def _at_sigterm(action: signal.Handlers) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, action)


def _say(text: str) -> None:
    _at_sigterm(signal.SIG_DFL)  # the launcher ends those that still wait to speak
    if _is_one_of_the_others():
        # The first process speaks for all: the launcher ends the others, unless the trouble is theirs alone.
        time.sleep(2)
    _print(text)


def _print(text: str) -> None:
    with suppress(OSError):  # what it was piped into may have ended
        print(shown_lines(text), file=sys.stderr, flush=True)


def _leave(code: int) -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        # Leaving in an orderly way would wait for processes that wait for this one.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
