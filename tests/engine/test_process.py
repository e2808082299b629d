"""What a training leaves of the process that it runs in, and where its workers cannot talk."""

import contextlib
import json
import tempfile

import pytest
import torch

from tests.training import debug_runner

# In a process of its own, with settings that the run's differ from.
PROGRAM = """
import json, sys
import cv2, torch, torch.multiprocessing as mp
mp.set_start_method("spawn", force=True)
torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False
torch.backends.cuda.matmul.allow_tf32 = True
cv2.setNumThreads(2)

def settings():
    cudnn = torch.backends.cudnn
    return [
        mp.get_start_method(), cv2.getNumThreads(), torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic,
    ]

if __name__ == "__main__":
    from mmengine.hooks import Hook
    from tests.training import debug_runner
    class Look(Hook):
        def after_train_epoch(self, runner):
            print(json.dumps(settings()))
    print(json.dumps(settings()))
    runner = debug_runner(sys.argv[1], train_cfg__max_epochs=1, randomness__deterministic=True)
    print(json.dumps(settings()))
    runner.register_hook(Look())
    runner.train()
    print(json.dumps(settings()))
"""


@pytest.mark.slow
def test_a_training_leaves_the_process_as_it_was(tmp_path, run_tool):
    (tmp_path / "program.py").write_text(PROGRAM)
    ended = run_tool(str(tmp_path / "program"), tmp_path / "work")
    assert ended.code == 0, ended.output
    before, built, during, after = [json.loads(line) for line in ended.output.splitlines() if line.startswith("[")]
    assert before == built == after
    assert during == ["fork", 1, True, False, False, False, True]


# In a process of its own too: from 2.11 on PyTorch reads no older name once a newer one was written.
NEWER_NAMES = """
from torch.backends import cuda, cudnn
from crate_mm.engine.safety.process import ProcessSettings
cuda.matmul.fp32_precision = "tf32"
cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = "ieee", "tf32"
kept = ProcessSettings()
cuda.matmul.allow_tf32 = cudnn.allow_tf32 = False
kept.apply()
print(*(part.fp32_precision for part in (cuda.matmul, cudnn.conv, cudnn.rnn)))
"""


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="PyTorch has no newer names")
def test_tf32_by_its_newer_names_is_kept(tmp_path, run_tool):
    (tmp_path / "program.py").write_text(NEWER_NAMES)
    assert run_tool(str(tmp_path / "program")).output == "tf32 ieee tf32\n"


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_without_a_place_for_their_sockets_are_refused(tmp_path, monkeypatch, workers):
    folder = tmp_path / ("a" * 80)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    refused = pytest.raises(ValueError, match="set TMPDIR=/tmp or num_workers=0")
    with refused if workers else contextlib.nullcontext():
        debug_runner(tmp_path / "work", train_dataloader__num_workers=workers)
