"""The tests that need a GPU see it when they are asked for by their marker."""

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
