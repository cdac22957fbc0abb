"""`hs.search`: members and a budget in, the best plan found and the evidence out."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from operator import index
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ...bulk.settings import chosen_labels
from ...denoiser import Denoiser, Guided
from ...errors import HemstitchError
from ...evaluate.extractors import Extractor
from ...evaluate.frechet import Moments
from ...evaluate.reference import Source, open_reference, pooled_moments
from ...files import read_json_file, write_text
from ...grid import timesteps
from ...identity import identity
from ...provenance import provenance
from ...samplers import Sampler, sampler_of
from ..plan import Plan
from ..stitched import Stitched
from .cost import Costs, measure_costs
from .evidence import Evidence
from .found import Found, found_of
from .frontier import Rules
from .judge import Frechet, Judge, Paired, Pixels
from .probes import Priced
from .searching import Question, Search, Turn
from .store import Store
from .trunk import Candidate, Ground

LADDER = (1, 0.8, 0.64, 0.5, 0.4, 0.32)  # of the steps asked for
PATIENCE = (3.0, 15.0)  # seconds to measure costs in, and again where they were doubtful
DOUBTFUL = 0.25  # half the range of the middle half of a member's times, as a share of their median
EQUAL = 0.9  # of the dearest member's cost: above it there is nothing to trade


def search(
    members: Mapping[str, Denoiser],
    budget: float | Sequence[float] | None = None,
    *,
    milliseconds: float | None = None,
    reference: Moments | Source | str | None = None,
    extractor: Extractor | None = None,
    labels: Sequence[int] | Tensor | str | None = None,
    steps: int | Sequence[int] = 50,
    sampler: str | Sampler = "ddim",
    eta: float = 0.0,
    guidance: float = 1.0,
    guidance_channels: int | None = None,
    guidance_interval: tuple[float, float] | Literal["search"] | None = None,
    grid: str = "released",
    seams: int | None = None,
    samples: int = 512,
    trajectories: int = 32,
    batch: int = 64,
    seed: int | None = 0,
    seconds: float | None = None,
    per_sample: bool = False,
    decode: Callable[[Tensor], Tensor] | None = None,
    out: str | Path | None = None,
    progress: Callable[[Turn], None] | None = None,
) -> Found:
    """Find which member to run at which step within a latency budget, by measurement on this machine.

    members: names to denoisers, in any order: the dearest, by measured cost, is the one whose quality is wanted.
    budget: share of its time at all steps, or several; milliseconds: the same as time per image, instead.
    reference: what samples are measured against, in the features of `extractor`: pictures or statistics as
        `open_reference` takes them. Without one, plans are ranked by how much samples differ from the dearest member's
        of the same seeds (RMS; of features, if there is an extractor), which counts any change as a loss.
    labels: as in bulk sampling: None or "balanced" for all classes in turn, "random", or the classes to use.
    steps: solver steps of a full trajectory, of which budgets are shares; plans of fewer, down to a third, are tried,
        too. Several numbers are those to choose among; [50] is 50 alone.
    sampler, eta, guidance, guidance_channels, grid: as in `sample`. guidance_interval: log-SNR, or "search".
    seams: changes of member at most; by default 4, or 2 where the sampler remembers its last step, which a seam makes
        it forget. As many as there are steps is any order.
    samples: half to choose plans by, growing from an eighth of them, and half, new, to judge what was chosen.
    trajectories: of the dearest member, on which members are compared step by step.
    batch: samples at a time; latency is measured at this size. seed: of samples and proposals.
    seconds: a time bound, within which less is tried and the answer says what was left out.
    per_sample: compare an `AdaptivePlan` with the best plain fraction, of about the same mean seam.
    decode: latents to images in -1..1; its `told`, a text if it has one, tells it from others.
    out: a folder where everything measured is kept; the same search goes on there.

    The same seed and costs find the same plan (costs are kept in `out`). Raises HemstitchError for members that cannot
    be traded, budgets that cannot be met and time too short for one plan.
    """
    began = time.perf_counter()
    solver = sampler_of(sampler, eta)
    counts, free = _counts(steps)
    searched = guidance_interval == "search"
    if isinstance(guidance_interval, str) and not searched:
        raise HemstitchError(f"guidance_interval is (low, high) log-SNR or 'search', not {guidance_interval!r}")
    interval = None if searched or isinstance(guidance_interval, str) else guidance_interval
    _check(members, counts, solver, guidance, guidance_channels, interval, grid, searched)
    _check_numbers(samples, batch, trajectories, seams, seconds, seed)
    asked = _asked(budget, milliseconds)
    if seed is None or seed < 0:
        raise HemstitchError(
            "plans are compared on samples of the same seeds, and without a reference with the largest member's of "
            "those: give seed=, a whole number of at least 0"
        )
    any_member = next(iter(members.values()))
    drawn = _labels(labels, any_member.spec.num_classes, samples, seed)
    ground = Ground(members, drawn, solver, guidance, guidance_channels, interval, grid, seed, batch)
    judge = _judge(reference, extractor, decode, ground)
    remembers = solver.order > 1 and solver.evaluations == 1
    seams = (2 if remembers else 4) if seams is None else seams
    folder = None if out is None else Path(out)
    costs, doubts = _costs(folder, ground, searched, seconds)
    names = tuple(sorted(members, key=lambda name: costs.ms(name, guidance != 1)))
    priced = Priced(
        costs,
        names,
        max(counts),
        lambda count, last: ground.guided(count, members[last].process),
        solver.evaluations,
    )
    budgets = _budgets(asked, milliseconds, priced, counts, batch, searched)
    settings = _settings(ground, judge, decode, names[-1], samples, counts, seams, searched, trajectories)
    spent = _continued(folder, settings)
    if folder is not None:
        write_text(folder / "costs.json", json.dumps(costs.to_data(), indent=1))
    question = Question(
        ground, budgets, counts, Rules(seams, searched), samples, trajectories, seed, free, seconds, per_sample
    )
    kept = None if folder is None else folder / "rows"
    search = Search(question, priced, Store(ground, judge, priced.full, kept), began=began)
    search.evidence = _evidence(folder, search)
    search.notes += doubts
    if samples % batch:
        search.notes.append(f"samples are drawn {batch} at a time: {samples % batch} of {samples} were left out")
    if isinstance(judge, Frechet) and question.judged * batch < 2 * len(judge.reference.mean):
        search.notes.append(
            f"{question.judged * batch} samples are few for {len(judge.reference.mean)} features: gaps between Fréchet "
            "distances are biased, towards samples that vary little; give more samples"
        )
    if remembers:
        search.notes.append(f"at most {seams} changes of member: the sampler forgets its last step at each")
    for turn in search.run():
        if folder is not None and turn.stage == "evidence" and turn.done == turn.total:
            assert search.evidence is not None
            write_text(folder / "evidence.json", json.dumps(search.evidence.to_data()))
        if folder is not None:
            write_text(folder / "spent.json", json.dumps({"seconds": spent + time.perf_counter() - began}))
        if progress is not None:
            progress(turn)
    taken = spent + time.perf_counter() - began
    told = {
        "sampler_name": sampler if isinstance(sampler, str) else repr(sampler),
        "eta": eta,
        "budgets": list(budgets),
    }
    found = found_of(search, settings | told, provenance(any_member.device), taken)
    if folder is not None:
        write_text(folder / "search.json", json.dumps(found.to_data(), indent=1, allow_nan=False))
    return found


def _counts(steps: int | Sequence[int]) -> tuple[tuple[int, ...], bool]:
    """The numbers of steps to choose among, rising, and whether others may be found, too: those given, or of a single
    one a ladder down from it."""
    try:
        if isinstance(steps, Iterable):
            return tuple(sorted({index(count) for count in steps})), False
        most = index(steps)
    except TypeError:
        raise HemstitchError(f"steps is a whole number, or several of them, not {steps!r}") from None
    return tuple(sorted({max(2, round(most * rung)) for rung in LADDER} | {most})), True


def _labels(labels: Sequence[int] | Tensor | str | None, classes: int, samples: int, seed: int) -> Tensor | None:
    """(N,) the classes of the samples, in an order drawn by the seed, so that what chooses and what judges are alike.

    Balanced, of more classes than samples, they are a draw of the classes.
    """
    chosen = chosen_labels(labels, classes, samples, seed)
    if chosen is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    if labels is None or labels == "balanced":
        chosen = torch.randperm(classes, generator=generator)[chosen]
    return chosen[torch.randperm(len(chosen), generator=generator)]


def _asked(budget: float | Sequence[float] | None, milliseconds: float | None) -> tuple[float, ...]:
    """The budgets as numbers, none if they are said in milliseconds."""
    if (budget is None) == (milliseconds is None):
        raise HemstitchError(
            "say how long sampling may take: budget= (a share of the largest member's time) or milliseconds="
        )
    try:
        values = () if budget is None else tuple(budget) if isinstance(budget, Iterable) else (budget,)
    except TypeError:  # an array of no dimensions is one number
        values = (float(budget),)  # type: ignore[arg-type]
    if budget is not None and not values:
        raise HemstitchError("at least one budget")
    wrong = [v for v in (*values, *([milliseconds] * (milliseconds is not None))) if not _is_positive(v)]
    if wrong:
        raise HemstitchError(f"a budget is a number above 0 and at most 1, milliseconds are above 0; got {wrong[0]!r}")
    return tuple(float(v) for v in values)


def _is_positive(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value) and float(value) > 0


def _check(
    members: Mapping[str, Denoiser],
    counts: tuple[int, ...],
    sampler: Sampler,
    guidance: float,
    channels: int | None,
    interval: tuple[float, float] | None,
    grid: str,
    searched: bool,
) -> None:
    """Raise unless these members can take turns in one trajectory, as asked."""
    if len(members) < 2:
        raise HemstitchError(
            f"a search is among two members or more; got {', '.join(members) or 'none'}: give a cheaper one beside it"
        )
    if not counts or counts[0] < 2:
        raise HemstitchError(f"a plan that is searched has at least 2 steps, not {counts[0] if counts else 'none'}")
    for last in members:  # in the process of each, since any may end the trajectory
        model = Stitched(members, Plan.steps_each({last: counts[-1]}))
        if guidance != 1:
            Guided(model, guidance, channels, interval)
        if not isinstance(grid, str):
            raise HemstitchError("a search takes its grid by name: it tries other numbers of steps, too")
        timesteps(model.process, counts[-1], grid)
    if searched and guidance == 1:
        raise HemstitchError("where to guide is searched only with guidance: give guidance= other than 1")
    if (searched or interval is not None) and sampler.evaluations > 1:
        raise HemstitchError(
            "this sampler asks at two noise levels a step, of which an interval may guide one only: take ddim or "
            "dpmpp_2m where guidance has an interval"
        )


def _check_numbers(
    samples: int, batch: int, trajectories: int, seams: int | None, seconds: float | None, seed: int | None
) -> None:
    whole = {"samples": samples, "batch": batch, "trajectories": trajectories, "seams": seams, "seed": seed}
    for name, value in whole.items():
        if value is not None and not isinstance(value, Integral):
            raise HemstitchError(f"{name} is a whole number, not {value!r}")
    if batch < 1 or samples < 2 * batch:
        raise HemstitchError(
            f"samples are drawn {batch} at a time, some to choose by and some to judge by: give samples of at least "
            f"{2 * max(1, batch)}, not {samples}, or a smaller batch"
        )
    if batch < 2:
        raise HemstitchError("a distance is of at least 2 samples: give a batch of 2 or more")
    if trajectories < 1 or (seams is not None and seams < 0) or (seconds is not None and not seconds > 0):
        raise HemstitchError("trajectories are at least 1, seams at least 0, seconds above 0")


def _judge(
    reference: Moments | Source | str | None,
    extractor: Extractor | None,
    decode: Callable[[Tensor], Tensor] | None,
    ground: Ground,
) -> Judge:
    spec = next(iter(ground.members.values())).spec
    if reference is not None and extractor is None:
        raise HemstitchError("a distance to a reference is of features: give an extractor=, or leave out the reference")
    if extractor is not None and decode is None and spec.channels not in (1, 3):
        raise HemstitchError(f"samples of {spec.channels} channels are latents: give decode= to make pictures of them")
    pixels = Pixels(spec, decode)
    if reference is None or extractor is None:
        return Paired(pixels, extractor)
    if isinstance(reference, str):
        reference = open_reference(reference, grey=spec.channels == 1)
    if isinstance(reference, Moments):
        content = hashlib.sha256(reference.mean.tobytes() + reference.covariance.tobytes()).hexdigest()[:12]
        return Frechet(pixels, extractor, reference, f"moments {content}")
    return Frechet(
        pixels, extractor, pooled_moments(reference, extractor), f"{reference.name} {reference.hash[:12]}".strip()
    )


def _settings(
    ground: Ground,
    judge: Judge,
    decode: Callable[[Tensor], Tensor] | None,
    largest: str,
    samples: int,
    counts: tuple[int, ...],
    seams: int,
    searched: bool,
    trajectories: int,
) -> dict[str, Any]:
    """What must be equal for a search to go on in a folder. Budgets and time may differ."""
    classes = "none" if ground.labels is None else hashlib.sha256(ground.labels.numpy().tobytes()).hexdigest()[:12]
    return {
        "members": {name: identity(member) for name, member in ground.members.items()},
        "largest": largest,
        "judge": judge.hash,
        "decode": None if decode is None else str(getattr(decode, "told", type(decode).__name__)),
        "sampler": repr(ground.sampler),
        "steps": list(counts),
        "grid": ground.grid,
        "guidance": ground.guidance,
        "guidance_channels": ground.guidance_channels,
        "guidance_interval": "search" if searched else ground.guidance_interval and list(ground.guidance_interval),
        "labels": classes,
        "seams": seams,
        "samples": samples,
        "batch": ground.batch,
        "trajectories": trajectories,
        "seed": ground.seed,
    }


def _continued(folder: Path | None, settings: dict[str, Any]) -> float:
    """Seconds spent here before. Raises where another search was begun."""
    if folder is None:
        return 0.0
    path = folder / "settings.json"
    if not path.exists():
        write_text(path, json.dumps(settings, indent=1))
        return 0.0
    try:
        before = read_json_file(path)
    except HemstitchError as error:
        raise HemstitchError(f"{error}: remove {folder}, or give another folder") from None
    differing = [name for name in settings if before.get(name) != json.loads(json.dumps(settings[name]))]
    if differing:
        raise HemstitchError(
            f"{folder} holds another search, of other {', '.join(differing)}: give another folder, or remove it"
        )
    try:
        spent = float(read_json_file(folder / "spent.json")["seconds"])
        return spent if math.isfinite(spent) else 0.0
    except (HemstitchError, KeyError, TypeError, ValueError):
        return 0.0


def _costs(folder: Path | None, ground: Ground, searched: bool, bound: float | None) -> tuple[Costs, list[str]]:
    """Measured once for a search, since what is chosen hangs on them, and what is doubtful about them.

    Costs that were measured before in the folder are taken if they are of this machine, these members and modes, and
    not doubtful. bound: seconds for the whole search, or None.
    """
    modes = [False, True] if searched or ground.guidance_interval is not None else [ground.guidance != 1]
    kept = None if folder is None else _read(folder / "costs.json", Costs.from_data)
    if kept is not None and _same_machine(kept, ground, modes) and not _doubts(kept):
        return kept, []
    costs: Costs | None = None
    for seconds in PATIENCE:
        if costs is not None and bound is not None and seconds > bound / 10:
            break
        costs = measure_costs(
            ground.members,
            batch=ground.batch,
            guided=modes,
            sampler=ground.sampler,
            guidance=ground.guidance,
            guidance_channels=ground.guidance_channels,
            seconds=seconds if bound is None else min(seconds, bound / 10),
        )
        if not _doubts(costs):
            break
    assert costs is not None  # there is patience
    return costs, _doubts(costs)


def _doubts(costs: Costs) -> list[str]:
    """Why costs may be wrong: calls that took very different times."""
    wide = [c for c in costs.entries if c.spread > DOUBTFUL * c.ms]
    if not wide:
        return []
    said = ", ".join(f"{c.member} {c.ms:.3g} ± {c.spread:.2g} ms" for c in wide)
    return [f"this machine is busy, and costs are doubtful ({said}): search again when it is quiet, or with one thread"]


def _same_machine(costs: Costs, ground: Ground, modes: Sequence[bool]) -> bool:
    """Whether costs are of this device, batch and sampler, and of these members and modes."""
    device = next(iter(ground.members.values())).device
    here = provenance(device)
    return (
        (costs.device, costs.threads, costs.batch) == (here["device"], int(here["threads"]), ground.batch)
        and costs.sampler == repr(ground.sampler)
        and {(c.member, c.guided) for c in costs.entries} == {(n, g) for n in ground.members for g in modes}
    )


def _evidence(folder: Path | None, search: Search) -> Evidence | None:
    """What an earlier sitting measured, if it measured all that was asked for."""
    kept = None if folder is None else _read(folder / "evidence.json", Evidence.from_data)
    question = search.question
    if kept is None or kept.samples != question.trajectories:
        return None
    return kept if kept.options == tuple(search.options) and len(kept.gain) == question.full else None


T = TypeVar("T")


def _read(path: Path, build: Callable[[dict[str, Any]], T]) -> T | None:
    """What a file says, None where it is missing or damaged: it is made again."""
    try:
        return build(read_json_file(path)) if path.exists() else None
    except HemstitchError:
        return None


def _budgets(
    asked: tuple[float, ...],
    milliseconds: float | None,
    priced: Priced,
    counts: tuple[int, ...],
    batch: int,
    searched: bool,
) -> tuple[float, ...]:
    """Shares of the dearest member's time, checked against what the members cost."""
    small, large = priced.names[0], priced.largest
    least_steps = min(counts)
    of_small, of_large = (priced.ms(priced.candidate(Plan.steps_each({n: least_steps}))) for n in (small, large))
    if of_small > EQUAL * of_large:
        each = least_steps * batch
        raise HemstitchError(
            f"{small} and {large} cost about the same ({of_small / each:.3g} and {of_large / each:.3g} ms per image "
            "and step): there is no time to be had by stitching them"
        )
    full = priced.ms(priced.full)
    if milliseconds is not None:
        asked = (milliseconds * batch / full,)
    if searched:  # nothing need be guided
        of_small = min(of_small, priced.ms(Candidate(Plan.steps_each({small: least_steps}), (False,) * least_steps)))
    least, half = of_small / full, max(2, least_steps // 2)
    for share in asked:
        if share > 1 + 1e-9:
            raise HemstitchError(
                f"a budget is a share of the time of {large} at {priced.steps} steps "
                f"({full / batch:.3g} ms per image), at most 1; got {share:.4g}"
            )
        if share < least:
            raise HemstitchError(
                f"a budget of {share:.4g} is below the cheapest plan, {small} alone at {least_steps} steps, which "
                f"takes {least:.4g} of the time: raise it, or let fewer steps be searched, as steps={[half, *counts]}"
            )
    return asked
