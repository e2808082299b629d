"""Trained runs that several test files read. Tests must not change them."""

import pytest

from tests.training import SGD, train, train_on_processes

LOGS = dict(default_hooks__logger__interval=1, log_processor__window_size=1)


@pytest.fixture(scope="session")
def epoch(tmp_path_factory):
    """Work directory of a run of one epoch."""
    folder = tmp_path_factory.mktemp("epoch")
    train(folder, train_cfg__max_epochs=1)
    return folder


@pytest.fixture(scope="session")
def one_process(tmp_path_factory):
    """Work directory of a run of one epoch with SGD."""
    folder = tmp_path_factory.mktemp("one")
    train(folder, **SGD, **LOGS)
    return folder


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """Work directory of a run of one epoch with SGD on two processes."""
    folder = tmp_path_factory.mktemp("two")
    train_on_processes(2, folder, **LOGS)
    return folder
