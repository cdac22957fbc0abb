"""The papers' claims, reproduced: trained, sampled, judged, and written up.

    python -m benchmarks.reproduction                                  # all of it, some 20 hours of one CPU core
    python -m benchmarks.reproduction --part switch,stitching          # some parts
    python -m benchmarks.reproduction --workers 2                      # beside one another, on a core each
    python -m benchmarks.reproduction --part write                     # results and figures of what there is by now
    python -m benchmarks.reproduction --take                           # what is published is done: the rest alone
    python -m benchmarks.reproduction --part quick --workers 2         # ten minutes: one seed of A and B

Every part goes on where it was stopped (Ctrl-C, SIGTERM or worse); a task that is done is not done again. Results are
under OUT/results, one file for each task; `write` copies them into benchmarks/results/reproduction, and brings the
tables and pictures of docs/reproduction.md up to date. `quick` holds its figures against the published intervals and
ends with 1 where one lies outside. `release` packs the models that `hemstitch quickstart --pretrained` shows.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from hemstitch.errors import HemstitchError

from . import PARTS

# glibc gives memory back to the system after every large tensor, and takes it again: a tenth of the time of sampling.
KEEPING = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
ALL = (*PARTS, "write", "release", "quick")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("build/reproduction"), help="folder for all that is made")
    parser.add_argument("--part", default=",".join((*PARTS, "write")), help=f"some of {', '.join(ALL)}")
    parser.add_argument("--workers", type=int, default=1, help="processes, each on one core")
    parser.add_argument("--only", default="", help="tasks whose names begin so, and nothing else")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # one of several: results, and no more
    parser.add_argument("--take", action="store_true", help="begin with the published results")
    parser.add_argument("--list", action="store_true", help="say what is done and what is left")
    known = parser.parse_args()
    asked = known.part.split(",")
    unknown = [part for part in asked if part not in ALL]
    if unknown:
        parser.error(f"parts are {', '.join(ALL)}, not {', '.join(unknown)}")
    if known.workers < 1:
        parser.error(f"--workers is at least 1, not {known.workers}")
    try:
        known.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {known.out} cannot be a folder: {error.strerror}")
    chosen = [part for part in (*PARTS, "quick") if part in asked]
    try:
        if known.take and not known.worker:
            import_module(f"{__package__}.write").take(known.out)
        if "quick" in asked and not known.list and not known.worker:
            import_module(f"{__package__}.quick").published()
        if chosen and not known.list and not known.worker:
            code = together(known.out, chosen, known.only, known.workers)
        else:
            code = alone(known.out, chosen, known.only, known.list)
        return code if known.list or known.worker or code else finished(known.out, asked)
    except HemstitchError as error:
        print(error, file=sys.stderr)
        return 2


def finished(out: Path, asked: Sequence[str]) -> int:
    """What is made of results, once they are there."""
    if "write" in asked:
        import_module(f"{__package__}.write").write(out)
    if "release" in asked:
        import_module(f"{__package__}.release").release(out)
    if "quick" in asked:
        from . import quick
        from .work import Ledger

        rows = quick.compared(Ledger(out / "results"), quick.published())
        print(quick.said(rows))
        return 0 if all(row.inside for row in rows) else 1
    return 0


def together(out: Path, parts: list[str], only: str, workers: int) -> int:
    """Workers on the same tasks, a process of one thread each, for which figures were published; what stops this one
    stops them, and they save."""
    told = os.environ | {"OMP_NUM_THREADS": "1"} | KEEPING
    command = [sys.executable, "-m", "benchmarks.reproduction", "--out", str(out), "--part", ",".join(parts)]
    command += ["--only", only, "--worker"]
    group = [subprocess.Popen(command, env=told, start_new_session=True) for _ in range(workers)]

    def stop(*_: object) -> None:
        for one in group:
            one.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return max((one.wait() != 0 for one in group), default=False)


def alone(out: Path, parts: list[str], only: str, only_list: bool) -> int:
    from .work import Ledger, with_needs, work

    ledger = Ledger(out / "results")
    every = {t.name: t for part in {*PARTS, *parts} for t in import_module(f"{__package__}.{part}").tasks(out)}
    asked = [t.name for part in parts for t in import_module(f"{__package__}.{part}").tasks(out)]
    tasks = with_needs([name for name in dict.fromkeys(asked) if name.startswith(only)], every)
    if asked and not tasks:
        raise HemstitchError(f"no task of {', '.join(parts)} has a name that begins with {only!r}: --list has them all")
    if only_list:
        for task in tasks:
            print(f"{'done' if ledger.done(task.name) else 'left'}  {task.name}")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is not in the middle of training ends
    try:
        failed = work(tasks, ledger, lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
