"""What was sampled and measured, kept in memory and, where there is a folder, on disk: a search goes on from there.

Shape suffixes: N samples, F features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...errors import HemstitchError
from ...evaluate.score import Score
from ...files import discard, save_tensors, write_atomic
from .judge import Judge
from .trunk import Candidate, Ground, sampled


def key_of(candidate: Candidate) -> str:
    """Sixteen hex digits that tell a candidate from all others."""
    marks = [(*option, len(list(run))) for option, run in groupby(candidate.options)]
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:16]


@dataclass
class Store:
    """Rows of every candidate by chunk of samples (`ground.batch` each), and their scores by number of samples.

    baseline: whose samples others are held against. folder: where rows are kept, or None.
    """

    ground: Ground
    judge: Judge
    baseline: Candidate
    folder: Path | None = None
    rows: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    beside: dict[int, Tensor] = field(default_factory=dict)
    scores: dict[tuple[str, range], Score] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder else ():
            try:
                tensors = load_file(path)
            except (SafetensorError, OSError):
                discard(path)  # it is sampled again
                continue
            for name, tensor in tensors.items():
                key, _, chunk = name.partition(".")
                if key == "beside":
                    self.beside[int(chunk)] = tensor
                else:
                    self.rows[key, int(chunk)] = tensor

    def missing(self, candidates: Sequence[Candidate], chunk: int) -> list[Candidate]:
        """Those that were not sampled on a chunk, and with them the baseline where its samples are needed."""
        lacking = [c for c in dict.fromkeys(candidates) if (key_of(c), chunk) not in self.rows]
        if lacking and self.judge.paired and chunk not in self.beside and self.baseline not in lacking:
            lacking.insert(0, self.baseline)
        return lacking

    def sample(self, candidates: Sequence[Candidate], chunk: int) -> None:
        """Sample those candidates on a chunk that were not yet, and keep their rows."""
        lacking = self.missing(candidates, chunk)
        if not lacking:
            return
        drawn = dict(sampled(self.ground, lacking, self.ground.rows(chunk)))
        new: dict[str, Tensor] = {}
        if self.judge.paired and chunk not in self.beside:
            self.beside[chunk] = drawn[self.baseline].cpu()
            new[f"beside.{chunk}"] = self.beside[chunk].contiguous()
        for candidate, x in drawn.items():
            if not bool(torch.isfinite(x).all()):
                raise HemstitchError(
                    f"samples of {candidate.plan} hold NaN or infinity: use another precision, sampler or guidance"
                )
            rows = self.judge.rows(x, self.beside.get(chunk)).contiguous()
            self.rows[key_of(candidate), chunk] = rows
            new[f"{key_of(candidate)}.{chunk}"] = rows
        if self.folder is not None:
            name = hashlib.sha256(" ".join(new).encode()).hexdigest()[:16]
            write_atomic(self.folder / f"{chunk:05d}-{name}.safetensors", lambda aside: save_tensors(aside, new))

    def scored(self, candidate: Candidate, chunks: range) -> bool:
        """Whether the distance of a candidate on these chunks is known."""
        return (key_of(candidate), chunks) in self.scores

    def score(self, candidate: Candidate, chunks: range) -> Score:
        """The distance of a candidate on the samples of these chunks, which were all sampled."""
        key = key_of(candidate)
        if (key, chunks) not in self.scores:
            rows_NF = torch.cat([self.rows[key, chunk] for chunk in chunks])
            self.scores[key, chunks] = self.judge.score(rows_NF)
        return self.scores[key, chunks]
