"""Tasks and their results: order, workers, failures. No training."""

import json
import multiprocessing
import time

import pytest

from hemstitch.errors import HemstitchError
from reproduction import work as working
from reproduction.work import Ledger, Stopped, Task, with_needs, work


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "results")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(working, "PATIENCE", 0.05)


def quiet(text):
    pass


def test_what_is_asked_for_comes_with_its_needs_and_with_nothing_else():
    every = {t.name: t for t in (Task("a", dict), Task("b", dict, ("a",)), Task("c", dict, ("b",)), Task("d", dict))}
    assert [t.name for t in with_needs(["c", "a"], every)] == ["a", "b", "c"]
    with pytest.raises(KeyError):
        with_needs(["e"], every)


def test_what_a_task_took_is_of_all_its_sittings(ledger):
    def once(seen=[]):  # noqa: B006 (remembered on purpose)
        seen.append(time.sleep(0.05))
        if len(seen) == 1:
            raise Stopped
        return {}

    with pytest.raises(Stopped):
        work([Task("a", once)], ledger, quiet)
    work([Task("a", once)], ledger, quiet)
    assert ledger["a"]["took"]["sittings"] == 2
    assert ledger["a"]["took"]["seconds"] >= 0.1


def test_tasks_wait_for_their_needs_and_are_done_once(ledger):
    done = []

    def task(name, *needs):
        return Task(name, lambda: done.append(name) or {"value": 1.5}, needs)

    tasks = [task("b/late", "a/early"), task("a/early")]
    assert work(tasks, ledger, quiet) == []
    assert done == ["a/early", "b/late"]
    assert work(tasks, ledger, quiet) == []
    assert len(done) == 2
    assert ledger["b/late"]["value"] == 1.5
    assert {"took", "provenance"} < set(ledger["b/late"])
    assert set(ledger.all("b")) == {"late"}


def test_a_result_that_other_settings_made_is_refused(ledger):
    work([Task("a", dict, of=("seed", 1))], ledger, quiet)
    work([Task("a", dict, of=("seed", 1)), Task("b", dict)], ledger, quiet)
    with pytest.raises(HemstitchError, match=r"1 results .* a first: remove .*a\.json"):
        work([Task("a", dict, of=("seed", 2)), Task("b", dict)], ledger, quiet)


def test_a_need_that_no_task_makes_is_an_error_unless_it_is_there(ledger):
    with pytest.raises(ValueError, match="b needs a"):
        work([Task("b", dict, ("a",))], ledger, quiet)
    work([Task("a", dict)], ledger, quiet)
    assert work([Task("b", dict, ("a",))], ledger, quiet) == []


def test_a_failure_is_told_and_only_what_needs_it_is_left(ledger):
    def fail():
        raise RuntimeError("no such thing")

    said = []
    tasks = [Task("a", fail), Task("b", dict, ("a",)), Task("c", dict, ("b",)), Task("d", dict)]
    assert work(tasks, ledger, said.append) == ["a"]
    assert [ledger.done(name) for name in "abcd"] == [False, False, False, True]
    assert any("no such thing" in line for line in said)


def test_a_task_that_is_stopped_stops_the_worker_and_has_no_result(ledger):
    def stop():
        raise Stopped

    with pytest.raises(Stopped):
        work([Task("a", stop), Task("b", dict)], ledger, quiet)
    assert not ledger.done("a")
    assert not ledger.done("b")


def test_a_result_that_is_not_json_leaves_no_file(ledger):
    assert work([Task("a", lambda: {"value": float("nan")})], ledger, quiet) == ["a"]
    assert not ledger.done("a")


def _worker(folder, log):
    def do(name):
        with log.open("a") as file:
            file.write(f"{name}\n")
        time.sleep(0.05)
        return {}

    tasks = [Task(f"t/{i}", lambda i=i: do(f"t/{i}")) for i in range(12)]
    work(tasks, Ledger(folder), quiet)


def test_workers_share_the_tasks_and_none_is_done_twice(tmp_path):
    log = tmp_path / "log"
    group = [multiprocessing.Process(target=_worker, args=(tmp_path / "results", log)) for _ in range(3)]
    for one in group:
        one.start()
    for one in group:
        one.join()
    lines = log.read_text().split()
    assert sorted(lines) == sorted({f"t/{i}" for i in range(12)})


def _die(folder):
    work([Task("a", lambda: time.sleep(60) or {})], Ledger(folder), quiet)


def test_a_worker_that_is_killed_holds_nothing(tmp_path):
    one = multiprocessing.Process(target=_die, args=(tmp_path,))
    one.start()
    while not (tmp_path / ".held" / "a").exists():
        time.sleep(0.01)
    one.kill()
    one.join()
    assert work([Task("a", dict)], Ledger(tmp_path), quiet) == []
    assert json.loads((tmp_path / "a.json").read_text())["took"]["seconds"] < 30


def makes(path, log, same="a"):
    def do():
        log.append(path.name)
        path.write_text("")
        return {"averaged_weights": same}

    return do


def test_what_is_lost_is_made_again_for_what_needs_it_alone(ledger, tmp_path):
    log, first, second = [], tmp_path / "first", tmp_path / "second"
    made = [
        Task("first", makes(first, log), keeps=first),
        Task("second", makes(second, log), ("first",), keeps=second),
    ]
    assert work(made, ledger, quiet) == []
    before = ledger["second"]
    first.unlink()
    second.unlink()
    assert work([*made, Task("other", dict)], ledger, quiet) == []
    assert log == ["first", "second"]  # nothing needs them
    assert work([*made, Task("late", lambda: {"there": second.exists()}, ("second",))], ledger, quiet) == []
    assert log == ["first", "second"] * 2
    assert ledger["late"]["there"]
    assert ledger["second"] == before


def test_what_is_made_again_is_what_it_was_or_an_error(ledger, tmp_path):
    log, path = [], tmp_path / "kept"
    work([Task("a", makes(path, log), keeps=path)], ledger, quiet)
    path.unlink()
    said = []
    other = [Task("a", makes(path, log, "b"), keeps=path), Task("b", dict, ("a",))]
    assert work(other, ledger, said.append) == ["a"]
    assert any("is another" in line for line in said)
    assert not ledger.done("b")
    assert not path.exists()  # or the next would take it for the one that was lost


def test_an_error_that_names_its_fix_is_told_without_a_traceback(ledger):
    def refuse():
        raise HemstitchError("install the data")

    told = []
    assert work([Task("a", refuse)], ledger, told.append) == ["a"]
    assert told[-1] == "a failed: install the data"
