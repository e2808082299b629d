"""Completion in shells: what bash offers, and that zsh and fish can read their scripts."""

import shutil
import subprocess

import pytest

from crate_mm.__main__ import COMMANDS
from crate_mm.cli.options import Parser
from crate_mm.config.load import packaged_configs
from tests.conftest import ROOT

pytest.importorskip("shtab")
COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_shtab_crate_mm 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module", params=["bash", "zsh", "fish"])
def script(request, tmp_path_factory):
    from crate_mm.cli.completion import completion

    path = tmp_path_factory.mktemp("completion") / request.param
    path.write_text(completion(request.param, COMMANDS))
    assert not Parser.build_only
    return path


def test_a_script_has_all_names_and_is_read_by_its_shell(script):
    text = script.read_text()
    words = [
        *(name.replace("_", "-") for name in COMMANDS),
        *packaged_configs(),
        "crate_alpha_base_in1k",
        "linear-probe",
    ]
    assert [word for word in words if word not in text] == []
    if shell := shutil.which(script.name):
        done = subprocess.run([shell, "-n", script], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", ["bash"], indirect=True)
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tr", "train"),
        ("train transfer/cifar1", "transfer/cifar10 transfer/cifar100"),
        ("train configs/debu", "configs/debug.py"),
        ("train debug --model vit_s", "vit_small_in1k"),
        ("train debug --linear", "--linear-probe"),
        ("test debug crate_alpha_b", "crate_alpha_base_in1k"),
        ("analyze pc", "pca"),
        ("analyze layers debug epoch.pth --split v", "val"),
        ("export debug epoch.pth --to t", "torch-export torchscript"),
        ("plot too", "tools"),
    ],
)
def test_bash_completes(script, words, expected):
    command = ["bash", "-c", COMPLETE, "bash", script, "crate-mm", *words.split(" ")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == expected.split()
