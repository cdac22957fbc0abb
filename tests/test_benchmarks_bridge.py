"""The bridge's benchmark, on tiny networks: that it runs, what it writes, and its exact figures. Nothing is timed."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import bridge as benchmark


def written(folder, *parts):
    path = folder / "bridge.json"
    status = benchmark.main(["--size", "tiny", "--parts", ",".join(parts), "--out", str(path)])
    return status, json.loads(path.read_text())


def test_what_it_writes(tmp_path, capsys):
    status, results = written(tmp_path, "equality", "overhead", "dit")
    assert status == 0
    assert list(results) == ["provenance", "equality", "overhead", "dit"]
    assert {"commit", "device", "dtype", "diffusers", "seeds"} <= set(results["provenance"])
    for network in ("unet", "dit"):
        found = results["equality"][network]
        assert found["0"]["equal"]
        assert found["1"]["equal"]
        assert found["0.4 differs from both"]
    assert set(results["overhead"]) == {"target_ms", "tiny networks", "no computing", "whole runs, no computing"}
    for spacing in ("leading", "trailing"):
        assert set(results["dit"][spacing]) == {"0", "0.4", "1"}
        assert max(results["dit"][spacing].values()) < results["dit"]["target"]
    assert "bitwise equal" in capsys.readouterr().out


def test_a_part_that_fails(tmp_path, capsys, monkeypatch):
    def failing(bench):
        raise RuntimeError("out of luck")

    monkeypatch.setitem(benchmark.PARTS, "speed", failing)
    status, results = written(tmp_path, "speed", "compiled")
    assert status == 1
    assert results["speed"] == {"failed": "RuntimeError: out of luck"}
    assert results["compiled"] == {"not measured": "on a CPU"}
    assert "out of luck" in capsys.readouterr().out


@pytest.mark.parametrize(("count", "low", "high"), [(1, 0, 0), (5, 0, 4), (6, 0, 5), (15, 3, 11), (40, 13, 26)])
def test_interval_of_a_median(count, low, high):
    """Ranks from tables of the sign test at 5 %, counted from 0."""
    assert benchmark.spread([float(i) for i in range(count)])["interval"] == [low, high]
