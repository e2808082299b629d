"""The tests that need a GPU are found by their marker, and see it when they are asked for."""

import os

import pytest

from tests.conftest import hides_gpu


@pytest.mark.parametrize(
    ("markers", "hidden"),
    [("", True), ("not slow", True), ("not gpu", True), ("gpu", False), ("gpu and not slow", False)],
)
def test_the_gpu_is_hidden_from_all_other_tests(markers, hidden):
    assert hides_gpu(markers) is hidden


def test_this_run_hides_it(pytestconfig):
    if hides_gpu(pytestconfig.getoption("markexpr")):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_the_marker_finds_every_test_that_needs_one(tmp_path, run_tool):
    (tmp_path / "collect.py").write_text("import pytest, sys\nsys.exit(pytest.main(sys.argv[1:]))\n")
    files = ["tests/engine/test_fast_paths.py", "tests/datasets/test_fast_loading.py"]
    options = ["-q", "-m", "gpu", "--collect-only", "-p", "no:cacheprovider"]
    done = run_tool(str(tmp_path / "collect"), *options, *files)
    assert done.code == 0, done.output
    assert done.output.count("::test_") == 14, done.output
