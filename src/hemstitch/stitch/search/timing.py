"""Stopwatch for solver evaluations: several trajectories take turns, and medians are what is kept."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import count
from time import perf_counter
from typing import NamedTuple

import torch

from ...denoiser import Denoiser
from ...samplers import Sampler
from ...sampling import Job, prepare

FEWEST = 9  # rounds
PRECISION = 0.02  # of each median, at which a measurement ends early
WARM_UP = 2  # evaluations, not counted
LEVELS = 5  # of the grid that is walked; the step to the clean level is left out
REFILL = 0.25  # seconds: in a quicker evaluation it shows that caches hold another member's weights
IN_A_ROW = 4  # evaluations that a GPU is given before it is waited for, as sampling does not wait for each


class Round(NamedTuple):
    """How far a measurement is. error: the largest standard error of a median, as a share of it."""

    done: int
    seconds: float
    error: float


class Timing(NamedTuple):
    """Of one evaluation, in seconds. spread: half the interquartile range. peak: bytes taken at most, 0 on a CPU."""

    median: float
    spread: float
    peak: int


class Walk:
    """A trajectory of one member, over the noisier steps of a short grid again and again."""

    def __init__(self, job: Job) -> None:
        self.job, self.state = job, job.state
        self.device = job.state.x.device
        self.last = max(1, int(job.state.levels.count[0]) - 1)
        self.in_a_row = IN_A_ROW if self.device.type == "cuda" else 1

    @classmethod
    def of(cls, member: Denoiser, batch: int, sampler: Sampler, guidance: float, channels: int | None) -> Walk:
        """A member's own, alone, on a short grid. guidance: 1 is without."""
        classes, process = member.spec.num_classes, member.process
        job = prepare(
            member,
            [i % classes for i in range(batch)] if classes else None,
            num=batch,
            steps=LEVELS if process.is_flow else min(LEVELS, process.timesteps),
            sampler=sampler,
            guidance=guidance,
            guidance_channels=channels,
            grid="trailing",
        )
        return cls(job)

    def evaluate(self) -> None:
        """What `sampling.run` does between two network calls."""
        with torch.no_grad():
            prediction = self.job.denoiser(self.state.x, self.state.t, self.job.labels)
            state = self.job.sampler.step(self.state, prediction)
        self.state = self.job.state if int(state.step[0]) >= self.last else state

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, follow: bool) -> float:
        """Of one evaluation. follow: after an untimed one."""
        if follow:
            self.evaluate()
        self.wait()
        begin = perf_counter()
        for _ in range(self.in_a_row):
            self.evaluate()
        self.wait()
        return (perf_counter() - begin) / self.in_a_row

    def peak(self) -> int:
        """Bytes that one evaluation takes above what was taken before it; 0 on a CPU, which does not tell."""
        if self.device.type != "cuda":
            self.evaluate()
            return 0
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self.evaluate()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) - before


def timed(walks: Sequence[Walk], seconds: float, progress: Callable[[Round], None] | None = None) -> list[Timing]:
    """Rounds of all walks until every median is known to 2 % or `seconds` are over, at least 9. Warm-up not counted.

    An evaluation quicker than 0.25 s follows an untimed one of its own walk.
    """
    began = perf_counter()
    follow, peaks = [], []
    for walk in walks:
        for _ in range(WARM_UP - 1):
            walk.evaluate()
        walk.wait()
        begin = perf_counter()
        peaks.append(walk.peak())
        follow.append(perf_counter() - begin < REFILL)
    taken: list[list[float]] = [[] for _ in walks]
    for done in count(1):
        for i in order(len(walks), done - 1):
            taken[i].append(walks[i].seconds(follow[i]))
        at = Round(done, perf_counter() - began, max(map(relative_error, taken)))
        if progress is not None:
            progress(at)
        if done >= FEWEST and (at.error <= PRECISION or at.seconds >= seconds):
            break
    return [Timing(statistics.median(t), _range(t) / 2, peak) for t, peak in zip(taken, peaks, strict=True)]


def order(n: int, turn: int) -> list[int]:
    """Who follows whom among n: rows of Williams' (1949) square, over whose rows each follows each other equally often.

    The square has n rows, 2n where n is odd, the second half mirrored.
    """
    zigzag = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(n)]
    row = [(place + turn) % n for place in zigzag]
    return row[::-1] if n % 2 and turn // n % 2 else row


def relative_error(times: Sequence[float]) -> float:
    """Standard error of the median as a share of it, from the interquartile range; infinite below 3 times.

    Of n normal values it is 1.2533 s/√n, and the range is 1.349 s; a slow spell, which s would show, leaves it alone.
    """
    if len(times) < 3:
        return float("inf")
    error = 1.2533 * _range(times) / 1.349 / len(times) ** 0.5
    median = statistics.median(times)
    return error / median if median else (float("inf") if error else 0.0)


def _range(times: Sequence[float]) -> float:
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return high - low
