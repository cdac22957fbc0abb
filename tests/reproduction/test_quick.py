"""The brief reproduction: what is held against what."""

import json

import pytest

from hemstitch.errors import HemstitchError
from reproduction import quick
from reproduction.work import Ledger


def row(value, error=1.0):
    return {
        "distance": {"value": value, "error": error, "samples": 10},
        "draws": [value - error, value, value + error],
    }


@pytest.fixture
def published(tmp_path):
    judged = {f"dit-0/{quick.SHORT}": row(42.0), f"switch_dit-0/{quick.SHORT}": row(39.0)}
    plans = {"0": row(10.0), "0.4": row(11.0), "0.8": row(20.0, 2.0)}
    results = {f"switch/judged/{run}": result for run, result in judged.items()}
    return ledger_of(
        tmp_path / "published", results | {"switch/field": {"classifier": "c"}, quick.TABLE: {"plans": plans}}
    )


def ledger_of(folder, results):
    ledger = Ledger(folder)
    for name, result in results.items():
        path = ledger.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
    return ledger


def mine(tmp_path, dit, switch, plans):
    results = {"judged/dit": row(dit), "judged/switch_dit": row(switch), "fractions": {"plans": plans}}
    return ledger_of(tmp_path / "mine", {f"quick/{name}": result for name, result in results.items()})


def test_what_is_as_published_lies_inside(tmp_path, published):
    plans = published[quick.TABLE]["plans"]
    rows = quick.compared(mine(tmp_path, 42.0, 40.0, plans), published)
    assert len(rows) == 8
    assert all(row.inside for row in rows)
    assert "all 8 inside" in quick.said(rows)


def test_what_is_not_lies_outside_and_is_named(tmp_path, published):
    plans = {"0": row(10.0), "0.4": row(13.0), "0.8": row(20.0)}
    rows = quick.compared(mine(tmp_path, 60.0, 40.0, plans), published)
    outside = [row.what for row in rows if not row.inside]
    assert f"dit after {quick.SHORT:,} iterations" in outside
    assert {"small on 0.4 of the steps", "small on 0.4 of the steps, less on none"} < set(outside)
    assert "outside" in quick.said(rows).splitlines()[-1]


def test_other_samples_are_as_uncertain_as_those_published():
    assert quick.other_samples(10.0, {"error": 1.0}) == pytest.approx(
        (10 - 1.96 * 2**0.5, 10 + 1.96 * 2**0.5), rel=1e-4
    )
    low, high = quick.other_samples(0.0, {"error": 3.0}, {"error": 4.0})
    assert (high - low) / 2 == pytest.approx(1.96 * 2**0.5 * 5, rel=1e-4)


def test_without_published_figures_there_is_nothing_to_hold_against(tmp_path):
    with pytest.raises(HemstitchError, match=r"no .*field\.json"):
        quick.published(tmp_path)


def test_with_published_figures_there_is(published):
    assert quick.published(published.folder) == published
