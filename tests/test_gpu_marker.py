"""The tests that need a GPU are found by their marker, and see it when they are asked for."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, hides_gpu


@pytest.mark.parametrize(
    ("markers", "hidden"),
    [("", True), ("not slow", True), ("not gpu", True), ("gpu", False), ("gpu and not slow", False)],
)
def test_the_gpu_is_hidden_from_all_other_tests(markers, hidden):
    assert hides_gpu(markers) is hidden


def test_this_run_hides_it(pytestconfig):
    if hides_gpu(pytestconfig.getoption("markexpr")):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.slow
def test_the_marker_finds_every_test_that_needs_one():
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--collect-only", "-p", "no:cacheprovider"]
    files = ["tests/engine/test_fast_paths.py", "tests/datasets/test_fast_loading.py"]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("::test_") == 3, done.stdout
