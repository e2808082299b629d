"""``get_flops``, by running it."""

import json


def test_get_flops(run_main, tmp_path):
    report = tmp_path / "report.json"
    done = run_main("get_flops", "crate_tiny_in1k", "--shape", 64, 96, "--json", report)
    report = json.loads(report.read_text())
    assert report["input_shape"] == [1, 3, 64, 96]
    positions = 197 - (1 + 4 * 6)
    assert report["parameters"] == 6_090_856 - positions * 384
    assert f"{report['flops']:,}" in done.output
