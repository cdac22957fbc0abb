"""Sets of pictures beside each other: every figure with its interval, and what may be said of a difference."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import HemstitchError
from ..provenance import provenance
from .extractors import Extractor
from .features import FeatureSet, Maker, extracted, stored
from .images import Images, content
from .inception_score import Order
from .metrics import Context, Metric, chosen
from .reference import Reference, Source, pinned
from .score import Compared, Score, compared, repeated

Show = Callable[[str, int, int, float], None]  # what is done, how much of it, of how much, seconds left


@dataclass(frozen=True)
class Row:
    """A set's figures. sources: one, or one per repeated seed. scores: by figure."""

    name: str
    sources: tuple[Source, ...]
    counts: tuple[int, ...]
    contents: tuple[str, ...]
    scores: dict[str, Score]


@dataclass(frozen=True)
class Report:
    """What was measured, of what, against what, by what.

    extractors: by figure. reference: name, count and hash. definitions: of the metrics, by name.
    """

    rows: tuple[Row, ...]
    extractors: dict[str, Maker]
    reference: dict[str, Any] | None
    definitions: dict[str, str]
    better: dict[str, str]
    provenance: dict[str, str]

    def against_first(self, row: Row) -> dict[str, Compared]:
        """Every figure of a row against that of the first row."""
        first = self.rows[0].scores
        return {name: compared(score, first[name]) for name, score in row.scores.items()}

    def __str__(self) -> str:
        """As a table for a terminal."""
        from .table import table

        return table(self)

    def to_json(self) -> str:
        rows = []
        for i, row in enumerate(self.rows):
            figures = {name: _told(score) for name, score in row.scores.items()}
            if i:
                for name, found in self.against_first(row).items():
                    figures[name]["against_first"] = found._asdict()
            sources = [{"name": s.name, "shares": s.seed, **(s.told or {})} for s in row.sources]
            told = {"name": row.name, "images": row.counts, "content": row.contents, "sources": sources}
            rows.append({**told, "figures": figures})
        extractors = {name: str(maker) for name, maker in self.extractors.items()}
        data = {
            "sets": rows,
            "reference": self.reference,
            "metrics": self.definitions,
            "extractors": extractors,
            "provenance": self.provenance,
        }
        return json.dumps(data, indent=1, allow_nan=False)


def _told(score: Score) -> dict[str, Any]:
    low, high = score.interval
    return {"value": score.value, "error": score.error, "low": low, "high": high, "note": score.note}


@dataclass(frozen=True)
class Measuring:
    """How to measure.

    extractor: for every metric that is not bound to another; None if there is none of those. bound: the others, by name
    ("dinov2", "clip"). count:
    pictures of each set at most. batch: extracted at a time. cache: a folder where features are kept for next time;
    None keeps them until the end. resamples: of the bootstrap of Fréchet distances; the other metrics take five times
    as many. order: of the samples in an Inception Score, "shuffled" as torch-fidelity or "given" as ADM.
    """

    extractor: Extractor | None
    bound: Mapping[str, Extractor] = field(default_factory=dict)
    count: int | None = None
    batch: int = 64
    cache: Path | None = None
    resamples: int = 20
    order: Order = "shuffled"
    device: torch.device | str = "cpu"

    def by(self, metric: Metric) -> Extractor:
        """The extractor of a metric."""
        if self.extractor is not None and metric.extractor in (None, self.extractor.name):
            return self.extractor
        if metric.extractor is None or metric.extractor not in self.bound:
            raise HemstitchError(f"{metric.told}: give its extractor, {metric.extractor or 'inception or another'}")
        return self.bound[metric.extractor]


def evaluate(
    sets: Mapping[str, Source | Sequence[Source]],
    reference: Source | None,
    metrics: Sequence[str],
    measuring: Measuring,
    show: Show = lambda what, done, total, left: None,
) -> Report:
    """Measure every set against the reference.

    sets: by name; several sources of one name are repeated seeds, whose mean is the figure and whose spread its error.
    All is checked before features are extracted: sizes, extractors, what the metrics need. show: called as work goes
    on. Raises HemstitchError.
    """
    asked = chosen(list(metrics))
    listed = {name: [one] if isinstance(one, Source) else list(one) for name, one in sets.items()}
    check(listed, reference, metrics, measuring)
    for source in _everything(listed, reference):
        if source.images is not None:
            source.images.checked(_named(f"{source.name}: looking through", show))
    scores: dict[str, list[dict[str, Score]]] = {name: [{} for _ in sources] for name, sources in listed.items()}
    contents: dict[str, list[str]] = {name: ["" for _ in sources] for name, sources in listed.items()}
    counts: dict[str, list[int]] = {name: [0 for _ in sources] for name, sources in listed.items()}
    made: dict[str, Maker] = {}
    told: dict[str, Any] | None = None
    with tempfile.TemporaryDirectory(prefix="hemstitch-features-") as aside:
        for extractor in extractors_of(asked, measuring):
            of_this = {name: m for name, m in asked.items() if measuring.by(m) is extractor}
            needs = [m for m in of_this.values() if m.reference]
            against = None
            if needs and reference is not None:
                against = _reference(reference, extractor, needs, measuring, Path(aside), show)
                told = _pinned(told, reference, against)
            context = Context(against, measuring.resamples, measuring.order, measuring.device)
            for name, sources in listed.items():
                for i, source in enumerate(sources):
                    features = _features(source, extractor, measuring, Path(aside), show)
                    if i and features.index.content in contents[name][:i]:
                        raise HemstitchError(f"two of the sets of {name} are the same pictures: give other seeds")
                    contents[name][i], counts[name][i] = features.index.content, len(features)
                    for metric_name, metric in of_this.items():
                        context.progress = _named(f"{features.name}: {metric_name}", show)
                        scores[name][i] |= metric.compute(features, context)
            made |= {figure: Maker.of(extractor) for m in of_this.values() for figure in m.figures}
    rows = tuple(
        Row(name, tuple(listed[name]), tuple(counts[name]), tuple(contents[name]), _combined(scores[name]))
        for name in listed
    )
    return Report(
        rows,
        made,
        told,
        {name: m.told for name, m in asked.items()},
        {figure: way for m in asked.values() for figure, way in m.figures.items()},
        provenance(measuring.device),
    )


def _named(what: str, show: Show) -> Callable[[int, int], None]:
    return lambda done, total: show(what, done, total, 0.0)


def extractors_of(asked: Mapping[str, Metric], measuring: Measuring) -> list[Extractor]:
    """Those that the metrics ask for, each once."""
    return list(dict.fromkeys(measuring.by(metric) for metric in asked.values()))


def check(
    sets: Mapping[str, Sequence[Source]], reference: Source | None, metrics: Sequence[str], measuring: Measuring
) -> None:
    """Raise HemstitchError for everything that can be known to be wrong before hours are spent."""
    asked = chosen(list(metrics))
    if not sets or not all(sets.values()):
        raise HemstitchError("there is nothing to evaluate: give a set of pictures")
    if measuring.resamples < 2:
        raise HemstitchError(f"errors are of at least 2 resamples, not {measuring.resamples}")
    if measuring.batch < 1 or (measuring.count is not None and measuring.count < 2):
        raise HemstitchError("pictures are extracted at least 1 at a time, and a set has at least 2")
    for name, sources in sets.items():
        _check_repeats(name, sources)
    everything = _everything(sets, reference)
    sizes = [(source.name, source.size) for source in everything if source.size is not None]
    if len({size for _, size in sizes}) > 1:
        told = ", ".join(f"{name} {h} x {w}" for name, (h, w) in sizes)
        raise HemstitchError(
            f"pictures of different sizes are not compared: {told}. For a reference of larger ones give KIND:PATH and "
            "the size (--reference folder:PATH --reference-size 256)"
        )
    for name, metric in asked.items():
        extractor = measuring.by(metric)
        for source in everything:
            if source.count is not None and min(source.count, measuring.count or source.count) < metric.least:
                raise HemstitchError(f"{name} needs at least {metric.least} pictures, and {source.name} has fewer")
        lacking = [output for output in metric.outputs if output not in extractor.outputs]
        if lacking:
            raise HemstitchError(f"{name} needs {', '.join(lacking)} features, which {extractor.name} does not give")
        if metric.reference:
            if reference is None:
                raise HemstitchError(f"{name} compares with a reference: give one (--reference imagenet/val)")
            if metric.pictures and reference.images is None and not reference.features:
                raise HemstitchError(
                    f"{name} needs the reference's pictures, and {reference.name} holds statistics alone: give a "
                    f"folder, a data set or a .npz with arr_0, or leave {name} out"
                )
    for extractor in extractors_of(asked, measuring):
        if measuring.cache is not None and not extractor.hash:
            raise HemstitchError(f"features of {extractor.name} cannot be kept: it has no hash to tell its weights by")
        for source in everything:
            _check_features(source, extractor)
        if reference is not None:
            _check_statistics(everything, reference, extractor, asked, measuring)
    if "accuracy" in asked:
        _check_labels([source for sources in sets.values() for source in sources], measuring.by(asked["accuracy"]))


def _everything(sets: Mapping[str, Sequence[Source]], reference: Source | None) -> list[Source]:
    return [source for sources in sets.values() for source in sources] + ([reference] if reference else [])


def _check_repeats(name: str, sources: Sequence[Source]) -> None:
    """That repeated seeds are of one model, and not one of them twice."""
    told = [source.told for source in sources if source.told]
    for key in ("model", "sampler", "steps", "guidance"):
        values = {str(t.get(key)) for t in told}
        if len(values) > 1:
            raise HemstitchError(
                f"repeated seeds of {name} are of one model: their {key} is {' and '.join(sorted(values))}"
            )
    contents = [t.get("content") for t in told]
    if len(set(map(str, contents))) < len(contents) or len({id(s) for s in sources}) < len(sources):
        raise HemstitchError(f"two of the sets of {name} are the same samples: give other seeds")


def _check_labels(sources: Sequence[Source], extractor: Extractor) -> None:
    """That every picture has a label, and the classifier an answer for each."""
    unlabelled = [source.name for source in sources if source.labels is None]
    if unlabelled:
        raise HemstitchError(f"{', '.join(unlabelled)} has no labels: leave accuracy out")
    classes = _widths(sources, extractor).get("logits", 0)
    for source in sources:
        assert source.labels is not None
        named = source.images.classes if source.images is not None else ()
        if int(source.labels.max()) >= classes or (named and len(named) != classes):
            many = max(len(named), int(source.labels.max()) + 1)
            raise HemstitchError(f"{source.name} has {many} classes, and the classifier {classes}: leave accuracy out")


def _check_features(source: Source, extractor: Extractor) -> None:
    """That features which are there already are this extractor's, where the pictures are not there to ask it."""
    if source.images is not None or not source.features:
        return
    kept = source.features.get(extractor.name)
    there = ", ".join(str(features.index.maker) for features in source.features.values())
    if kept is None or kept.index.maker != Maker.of(extractor):
        raise HemstitchError(
            f"{source.name} holds features of {there}, and {Maker.of(extractor)} is asked for: extract them again from "
            "the pictures, or use that extractor"
        )


def _check_statistics(
    everything: Sequence[Source],
    reference: Source,
    extractor: Extractor,
    asked: Mapping[str, Metric],
    measuring: Measuring,
) -> None:
    """That published statistics are as wide as this extractor's features."""
    of_this = [m for m in asked.values() if measuring.by(m) is extractor and m.reference and not m.pictures]
    needed = {output for metric in of_this for output in metric.outputs}
    if not reference.statistics or not needed:
        return
    absent = sorted(needed - set(reference.statistics))
    if absent and reference.images is None:
        raise HemstitchError(
            f"{reference.name} has no statistics of {', '.join(absent)} features (mu_s and sigma_s are the spatial "
            "ones): leave out what needs them, or give pictures"
        )
    for output, found in sorted(_widths(everything, extractor).items()):
        width = len(reference.statistics[output].mean) if output in needed & set(reference.statistics) else found
        if width != found:
            raise HemstitchError(
                f"{reference.name} has statistics of {width} {output} features, and {extractor.name} gives {found}: "
                "they are of another extractor"
            )


def _widths(everything: Iterable[Source], extractor: Extractor) -> dict[str, int]:
    """How many numbers an extractor gives per picture: of features that are there, or asked of it."""
    for source in everything:
        kept = (source.features or {}).get(extractor.name)
        if kept is not None:
            return {output: rows.shape[1] for output, rows in kept.rows.items()}
    size = next(source.size for source in everything if source.size is not None)
    probe = extractor(torch.zeros(2, 3, *size, dtype=torch.uint8))
    return {output: features.flatten(1).shape[1] for output, features in probe.items()}


def _features(source: Source, extractor: Extractor, measuring: Measuring, aside: Path, show: Show) -> FeatureSet:
    """Those there already, of this extractor; else extracted, or from the cache."""
    kept = (source.features or {}).get(extractor.name)
    if kept is not None and kept.index.maker == Maker.of(extractor):
        return kept.head(measuring.count)
    images = source.images
    assert images is not None  # checked
    total = len(images) if measuring.count is None else min(measuring.count, len(images))
    if measuring.cache is None:
        folder = Path(tempfile.mkdtemp(dir=aside))
    else:
        folder = Path(measuring.cache) / f"{_hashed(images, show)[:16]}-{extractor.hash}-{total}"
        found_before = _cached(folder, source, extractor)
        if found_before is not None:
            return found_before
    for progress, found in extracted(
        images,
        extractor,
        folder,
        name=source.name,
        labels=source.labels,
        seed=source.seed,
        batch=measuring.batch,
        count=measuring.count,
    ):
        show(f"{source.name}: {extractor.name}", progress.done, progress.total, progress.left)
        kept = found
    assert kept is not None
    return kept


def _cached(folder: Path, source: Source, extractor: Extractor) -> FeatureSet | None:
    """What an earlier evaluation kept, if this very extractor made it."""
    try:
        kept = stored(folder, source.name, source.labels, source.seed)
    except HemstitchError:  # not there, damaged or unfinished: made again
        return None
    return kept if kept.index.maker == Maker.of(extractor) else None


def _hashed(images: Images, show: Show) -> str:
    show(f"{images.name}: hashing", 0, len(images), 0.0)
    return content(images)


def _reference(
    source: Source, extractor: Extractor, needs: Sequence[Metric], measuring: Measuring, aside: Path, show: Show
) -> Reference:
    """The reference under one extractor. Its pictures are only looked at where statistics do not do."""
    statistics = source.statistics or {}
    wants = any(m.pictures or not set(m.outputs) <= set(statistics) for m in needs)
    features = None
    if wants:
        features = _features(source, extractor, replace(measuring, count=None), aside, show)
    hash = source.hash[:12] or (pinned(features) if features else "")
    return Reference(source.name, hash, Maker.of(extractor), statistics, features)


def _pinned(told: dict[str, Any] | None, source: Source, reference: Reference) -> dict[str, Any]:
    """What is said of the reference, added to for every extractor."""
    told = told or {"name": source.name, "images": None, "content": None, "statistics": source.hash or None, "hash": {}}
    if reference.features is not None:
        told["images"], told["content"] = len(reference.features), reference.features.index.content
    told["hash"][reference.maker.name] = reference.hash
    return told


def _combined(of_seeds: list[dict[str, Score]]) -> dict[str, Score]:
    """Of one set, its scores; of repeated seeds, their mean with the error that their spread gives."""
    return {name: repeated([scores[name] for scores in of_seeds]) for name in of_seeds[0]}
