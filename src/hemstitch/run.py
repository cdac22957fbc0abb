"""Run: a folder that explains itself. Recipe, metrics, checkpoints, samples."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from pathlib import Path
from typing import Any

from .errors import HemstitchError
from .files import read_json, read_json_file, sync, write_text
from .marked import complete, sound
from .recipe import Recipe


class Run:
    """recipe.json, provenance.jsonl, metrics.jsonl, checkpoints/, snapshots/, samples/, experts/ under one path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def exists(self) -> bool:
        return (self.path / "recipe.json").exists()

    @property
    def recipe(self) -> Recipe:
        return Recipe.from_data(read_json_file(self.path / "recipe.json"))

    def begin(self, recipe: Recipe, resume: bool) -> None:
        """Make the folder, or check that what is in it is this recipe's."""
        if self.exists:
            if not resume:
                raise HemstitchError(f"{self.path} holds a run already: pass --resume to go on, or another --out")
            differing = self.recipe.difference(recipe)
            if differing:
                raise HemstitchError(
                    f"{self.path} was begun with another recipe; these differ: {', '.join(differing)}. "
                    "Resume with the recipe it was begun with, or train into another --out"
                )
        elif resume and self.path.exists() and any(self.path.iterdir()):
            raise HemstitchError(f"{self.path} is not a run folder (it has no recipe.json): nothing to resume")
        elif self.path.exists() and not self.path.is_dir():
            raise HemstitchError(f"{self.path} is a file; --out is a folder")
        elif not resume and self.path.exists() and any(self.path.iterdir()):
            raise HemstitchError(f"{self.path} is not empty and not a run: choose another --out")
        try:
            write_text(self.path / "recipe.json", recipe.to_json())
            write_text(self.path / "README.txt", _README.format(name=recipe.name, path=self.path))
        except OSError as error:
            raise HemstitchError(f"cannot write to {self.path} ({error}): choose another --out") from error

    def newest(self) -> Path | None:
        """The newest complete checkpoint whose files are whole; damaged ones are named and passed over."""
        for candidate in reversed(complete(self.checkpoints)):
            wrong = sound(candidate)
            if wrong is None:
                return candidate
            warnings.warn(f"passing over a checkpoint: {wrong}", stacklevel=2)
        return None

    def log(self, metrics: dict[str, float], durable: bool = False) -> None:
        """Append a line to metrics.jsonl; durable: and have it on disk."""
        with (self.path / "metrics.jsonl").open("a") as file:
            told = {k: v if math.isfinite(v) else None for k, v in metrics.items()}  # JSON has no infinity
            file.write(json.dumps(told) + "\n")
        if durable:
            sync(self.path / "metrics.jsonl")

    def rewind(self, step: int) -> None:
        """Drop the metrics logged after a step, and a line cut short: the run goes on from there."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            write_text(path, "".join(line + "\n" for line in kept))

    def sitting(self, facts: dict[str, Any]) -> dict[str, Any] | None:
        """Note where and how training starts or goes on, in provenance.jsonl. Returns the note before it, if any."""
        path = self.path / "provenance.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        before = [told for line in lines if (told := _read_line(line)) is not None]
        write_text(path, "".join(json.dumps(told) + "\n" for told in (*before, facts)))
        return before[-1] if before else None

    @property
    def key(self) -> str:
        """Eight hex digits that are this run's for good, by which trackers know it again."""
        path = self.path / "provenance.jsonl"
        first = path.read_text().partition("\n")[0] if path.exists() else ""
        return hashlib.sha256(f"{self.path.resolve()} {first}".encode()).hexdigest()[:8]


_README = """A training run of hemstitch, recipe {name}.

recipe.json        everything that defines it
provenance.jsonl   where each sitting ran: code, machine, precision, processes
metrics.jsonl      losses and speed by step
checkpoints/       weights, averaged weights (ema) and optimizer; one marked COMPLETE is whole
samples/, experts/ pictures by step: samples of the averaged weights; which expert runs when (Switch-DiT)
trackers/          what tensorboard reads
snapshots/         power-function averages, of which load(..., ema=LENGTH) makes one of any length

go on:   hemstitch train {path}/recipe.json --out {path} --resume
sample:  hemstitch sample {path} --out samples/
"""


def _read_line(line: str) -> dict[str, Any] | None:
    """A line of JSON, or None where it was cut short."""
    try:
        return read_json(line, "a line")
    except HemstitchError:
        return None


def _step_of(line: str) -> float:
    return float((_read_line(line) or {}).get("step", float("inf")))
