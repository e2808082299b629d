"""``convert_official``, by running it."""

import torch

from crate_mm.engine import read_checkpoint


def test_convert_official(run_tool, tmp_path):
    from tests.models.test_foreign import official

    weights = {f"module.{key}": torch.randn(value.shape) for key, value in official().items()}
    torch.save({"epoch": 1, "state_dict": weights}, tmp_path / "official.pth")
    done = run_tool("convert_official", tmp_path / "official.pth", tmp_path / "ours.pth")
    assert done.code == 0, done.output
    assert "CRATE tiny" in done.output
    ours = read_checkpoint(tmp_path / "ours.pth")
    assert torch.equal(ours["state_dict"]["head.fc.weight"], weights["module.mlp_head.1.weight"])
    again = run_tool("convert_official", tmp_path / "official.pth", tmp_path / "ours.pth")
    assert (again.code, "exists: --force overwrites it" in again.last_line) == (2, True)
    other = run_tool("test", "debug", tmp_path / "official.pth")
    assert (other.code, "official.pth does not fit the model" in other.last_line) == (2, True)
