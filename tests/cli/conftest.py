"""Run commands in the process of the tests."""

import io
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module

import pytest
from mmengine.logging import MessageHub, MMLogger

from crate_mm.engine.logs import Visualizer
from crate_mm.engine.safety.signals import HANDLED_SIGNALS
from tests.conftest import Finished


@pytest.fixture
def run_main(monkeypatch):
    """Run a command's ``main`` in this process (``run_tool``: in a new process) and check its exit code."""

    def run(name: str, *args, cwd=None, code: int | None = 0) -> Finished:
        handlers = {number: signal.getsignal(number) for number in HANDLED_SIGNALS}
        ended, output = 0, io.StringIO()
        with monkeypatch.context() as patch, redirect_stdout(output), redirect_stderr(output):
            patch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
            for kind in (MMLogger, MessageHub, Visualizer):  # a run of the same name and second would reuse them
                patch.setattr(kind, "_instance_dict", kind._instance_dict.copy())
            if cwd:
                patch.chdir(cwd)
            try:
                import_module(f"crate_mm.cli.{name}").main()
            except SystemExit as end:
                ended = end.code or 0
        for number, handler in handlers.items():
            signal.signal(number, handler)
        done = Finished(ended, output.getvalue())
        assert code in (None, done.code), done.output
        return done

    return run
