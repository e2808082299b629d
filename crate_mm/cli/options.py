"""Options that the commands share, and the printing of user errors."""

import argparse
import io
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from ..checkpoints import CheckpointError
from ..config.kinds import RawText, parse_value  # noqa: F401  parse_value: for existing scripts, see moved.py
from ..engine.parallel.launch import LAUNCHERS
from ..engine.safety.finite import PeerFailedError, RunStoppedError
from ..engine.safety.lock import FolderInUseError
from ..engine.safety.signals import EXIT_INTERRUPTED, RunInterruptedError
from ..extras.doctor import emulates_bf16
from ..io.files import check_writable, home
from ..io.untrusted import sanitized, sanitized_lines
from ..registry import suggest

IN_USE = 75  # exit code for a locked work directory, read by tools/torchrun.py


class ParserBuilt(BaseException):
    """Carry the parser; raised instead of parsing if ``Parser.build_only`` is set."""

    def __init__(self, parser: "Parser") -> None:
        self.parser = parser


class Parser(argparse.ArgumentParser):
    """ArgumentParser that reports an error in one sentence and expands a leading ``~`` in every text argument.

    The description keeps its line breaks. ``crate-mm`` prints the example commands in a form that needs no clone.
    """

    build_only = False

    def __init__(self, description: str | None = None, **kwargs) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.color = False  # ``error`` parses the usage, which Python 3.14 would color
        if self.prog.startswith("crate-mm") and description:
            text = re.sub(r"python tools/(\w+)\.py", lambda m: f"crate-mm {m[1].replace('_', '-')}", description)
            self.description = re.sub(r"configs/([\w/]+)\.py", r"\1", text)

    def parse_args(self, *args, **kwargs) -> argparse.Namespace:
        if Parser.build_only:
            raise ParserBuilt(self)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # otherwise printing to a non-UTF-8 console may raise
                stream.reconfigure(errors="backslashreplace")
        parsed = super().parse_args(*args, **kwargs)
        for name, value in vars(parsed).items():
            if isinstance(value, str):
                setattr(parsed, name, home(value))
            elif isinstance(value, list):
                setattr(parsed, name, [home(part) if isinstance(part, str) else part for part in value])
        if getattr(parsed, "amp", False) and emulates_bf16() and not _is_nonzero_rank():
            _print("--amp: this processor has no instructions for bf16, and emulated bf16 is slower than float32")
        return parsed

    def parse_known_args(self, *args, **kwargs) -> tuple[argparse.Namespace, list[str]]:
        parsed, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:  # argparse would report a subcommand's unknown arguments with the main command's usage
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Print one sentence that states the mistake and the correction; exit with code 2."""
        usage = self.format_usage().partition("usage: ")[2]
        required = usage
        while re.search(r"\s*\[[^][]*\]", required):  # optional arguments, which may be nested
            required = re.sub(r"\s*\[[^][]*\]", "", required)
        if match := re.match(r"(.*invalid choice: '(.*)') \(choose from (.*)\)", message, re.DOTALL):
            message = f"{match[1]}: {suggest(match[2], match[3].replace(chr(39), '').split(', '))}"
        elif match := re.match(r"unrecognized arguments: (-\S+)", message):
            message = f"{message}: {suggest(match[1], re.findall('--[a-z][a-z-]+', usage))}"
        elif message.startswith(("unrecognized arguments", "the following arguments are required")):
            message = f"{message}: expected {' '.join(required.split())}"
        message = re.sub(r"invalid int value: (.*)", r"expected an integer, got \1", message)
        message = re.sub(r"invalid float value: (.*)", r"expected a number, got \1", message)
        _print_error(f"error: {sanitized(message, 1000)}; see {self.prog} --help")
        sys.exit(2)


class KeyValues(argparse.Action):
    """Collect KEY=VALUE pairs with the values as text. (MMEngine's own action drops spaces and cannot read dicts.)"""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for text in values:
            key, equals, value = text.partition("=")
            if not equals or not key:
                parser.error(f"{option_string} takes KEY=VALUE, got {text!r}")
            options[key] = RawText(value)
        setattr(namespace, self.dest, options)


def positive_int(text: str) -> int:
    """Parse a positive integer, for ``type=positive_int``."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


# Arguments that several commands have.
SHARED = {
    "config": {"help": "config file, or the name of a packaged config"},
    "images": {"nargs": "+", "metavar": "PATH", "help": "image file, folder, or pattern such as 'a/**/*.jpg'"},
    "--amp": {"action": "store_true", "help": "mixed precision: bf16, or fp16 where the GPU has no bf16"},
    "--batch": {"type": positive_int, "default": 64, "help": "batch size (default: 64)"},
    "--cfg-options": {
        "nargs": "+",
        "action": KeyValues,
        "metavar": "KEY=VALUE",
        "help": "override config settings, e.g. train_cfg.max_epochs=10 data_root=/data/imagenet",
    },
    "--force": {"action": "store_true", "help": "overwrite the output file"},
    "--json": {"metavar": "FILE", "help": "write the results to FILE, as JSON"},
    "--config": {"help": "config that defines the model, if the checkpoint does not"},
}


def add_shared(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add arguments of ``SHARED``."""
    for name in names:
        parser.add_argument(name, **SHARED[name])


def add_common_options(parser: argparse.ArgumentParser, work_dir: str) -> None:
    """Add the options that ``train.py`` and ``test.py`` share, with MMEngine's names."""
    parser.add_argument("--work-dir", help=f"directory for {work_dir}")
    add_shared(parser, "--amp", "--cfg-options")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none", help="launcher of the processes")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # older launchers pass it


@contextmanager
def user_errors(show_traceback: bool = False) -> Iterator[None]:
    """Exit with a one-line message if the body raises or is interrupted.

    The exit code is 2 for a user error, 1 for any other error, 130 after Ctrl-C and 85 after SIGTERM or SIGUSR1.

    Args:
        show_traceback: print the traceback before the message, because an error during a run may be a bug.
            The environment variable ``CRATE_MM_TRACEBACK=1`` has the same effect in every command.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        _print_error(str(error) or "interrupted")
        _exit_now(EXIT_INTERRUPTED)
    except RunInterruptedError as error:
        # When another process ends, the launcher may send SIGTERM. The signal would change the exit code.
        _set_sigterm(signal.SIG_IGN)
        if not _is_nonzero_rank():
            _print(str(error))
        _exit_now(error.code)
    except Exception as error:
        connection_lost = re.search("Connection (reset|closed) by peer", str(error))
        if connection_lost or isinstance(error, PeerFailedError):
            # Let the failed process print first. If there is a launcher, it ends this process during the wait.
            _set_sigterm(signal.SIG_DFL)
            time.sleep(5)
            _print_error(f"error: {'another process of the run has ended' if connection_lost else error}")
            _exit_now(1)
        own = (
            isinstance(error, (RunStoppedError, CheckpointError))
            or "UnreadableImagesError" in f"{type(error).__name__}{error}"
        )
        expected = isinstance(error, (ValueError, TypeError, KeyError, OSError, ImportError))
        if not own and (show_traceback or not expected or os.environ.get("CRATE_MM_TRACEBACK")):
            traceback.print_exc()
        _print_error(f"error: {_message(error)}")
        if isinstance(error, FolderInUseError) and "TORCHELASTIC_RUN_ID" in os.environ:
            _exit_now(IN_USE)
        _exit_now(2 if own or expected else 1)


def distinct_names(files: Iterable[str | Path], stems: bool = True) -> list[str]:
    """Return distinct names for files, with parent directories where needed; ``stems`` drops the extensions."""
    paths = [Path(file).with_suffix("") if stems else Path(file) for file in files]
    names = [path.name for path in paths]
    for depth in range(2, max(len(path.parts) for path in paths) + 1):
        repeated = {name for name in names if names.count(name) > 1}
        names = ["/".join(p.parts[-depth:]) if name in repeated else name for name, p in zip(names, paths)]
    return [f"{name} ({number + 1})" if names.count(name) > 1 else name for number, name in enumerate(names)]


def check_output(file: str, endings: tuple[str, ...] = (), rule: str = "", force: bool = True) -> str:
    """Check an output file before the work begins.

    Args:
        file: path of the file.
        endings: permitted extensions, in any case (default: all).
        rule: message for another extension, with {} for the file.
        force: whether an existing file may be overwritten.

    Returns:
        The extension in lower case.

    Raises:
        ValueError: the file has another extension, exists, or cannot be written.
    """
    ending = Path(file).suffix.lower()
    if endings and ending not in endings:
        raise ValueError(rule.format(sanitized(file)))
    if Path(file).exists() and not force:
        raise ValueError(f"{sanitized(file)} exists: --force overwrites it")
    check_writable(file)
    return ending


def _message(error: Exception) -> str:
    if "OutOfMemoryError" in type(error).__name__:
        return (
            "the GPU is out of memory: set --cfg-options max_batch_per_device=N, which splits larger batches and "
            f"accumulates their gradients. {str(error).splitlines()[0]}"
        )
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "in DataLoader worker process" in text:  # PyTorch wraps a worker's error in its traceback
        text = text.strip().splitlines()[-1]
    if not isinstance(error, RunStoppedError):  # its message lists images, one per line
        text = sanitized(text, 10_000)
    return text or type(error).__name__


def _is_nonzero_rank() -> bool:
    return os.environ.get("RANK", "0") not in ("", "0")


def _set_sigterm(action: signal.Handlers) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, action)


def _print_error(text: str) -> None:
    _set_sigterm(signal.SIG_DFL)  # so that the launcher can end ranks that are still waiting to print
    if _is_nonzero_rank():
        # If rank 0 has the same error, rank 0 prints it, and the launcher ends this process during the wait.
        time.sleep(2)
    _print(text)


def _print(text: str) -> None:
    with suppress(OSError):  # the reader of a pipe may have exited
        print(sanitized_lines(text), file=sys.stderr, flush=True)


def _exit_now(code: int) -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        # A normal exit would wait for processes that are waiting for this one.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
