"""An analysis as one HTML file that opens offline, its figures as files, and its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from torch import Tensor

from ..evaluate.report import STYLE, data_of
from . import figures, findings
from .agreement import Band, Likeness
from .experts import ExpertUse, expert_map_png
from .frequency import bands, ring_counts
from .study import PLANNED, Study

_MORE = """
figure { margin: 1.2rem 0 2rem; } figcaption { max-width: 46rem; margin-top: .4rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 0; }
"""


@dataclass(frozen=True)
class Shown:
    """A figure: the stem of its file, what it shows and what was found, a sentence or two each."""

    stem: str
    png: bytes
    shows: str
    found: str


@dataclass(frozen=True)
class Section:
    title: str
    lead: str
    figures: tuple[Shown, ...]


def sections(study: Study, uses: Mapping[str, ExpertUse]) -> list[Section]:
    """What there is to show: experts of every Switch-DiT, agreement if there is something to compare, frequencies."""
    taken: set[str] = set()
    made = [_experts(name, use, _stem(name, taken)) for name, use in uses.items()]
    if study.latents:
        made.append(_agreement(study))
    return [*made, _frequencies(study)]


def _experts(name: str, use: ExpertUse, stem: str) -> Section:
    _, N, M = use.probabilities.shape
    shown = (
        Shown(
            f"experts-{stem}-gates",
            expert_map_png(use.probabilities, f"{name}: gate probabilities by timestep"),
            "The probability that each block's gate gives each of its experts, before the top-k.",
            findings.of_gates(use),
        ),
        Shown(
            f"experts-{stem}-selection",
            figures.selection_png(use, f"{name}: selected experts, and the prior matched to them"),
            "Black: above, the experts that run; below, the diffusion prior's sliding window, its columns in the order "
            "in which training matches them to these experts.",
            findings.of_selection(use),
        ),
        Shown(
            f"experts-{stem}-prior-loss",
            figures.prior_loss_png(use, f"{name}: prior loss by timestep"),
            "The Jensen-Shannon divergence between gate probabilities and the matched prior, which the prior loss "
            "averages.",
            findings.of_prior_loss(use),
        ),
        Shown(
            f"experts-{stem}-usage",
            figures.usage_png(use, f"{name}: % of timesteps that select an expert"),
            "How much of the noise levels each expert serves.",
            findings.of_usage(use),
        ),
        Shown(
            f"experts-{stem}-affinity",
            figures.affinity_png(use, f"{name}: affinity of timesteps"),
            "How much two timesteps have in common: bright along the diagonal only is specialised, bright all over is "
            "not.",
            findings.of_affinity(use),
        ),
    )
    lead = f"{N} blocks of {M} experts, of which every timestep selects {use.top_k} per block. Both count from 0."
    return Section(f"Experts of {name}", lead, shown)


def _agreement(study: Study) -> Section:
    shown = [
        Shown(
            "agreement-latents",
            figures.latents_png(study),
            f"Every model samples alone from the same x_T; cosine similarity of its x_t to {study.reference}'s, mean "
            "and 10–90 % band over samples.",
            findings.of_latents(study),
        )
    ]
    if study.x0:
        shown.append(
            Shown(
                "agreement-predictions",
                figures.predictions_png(study),
                f"All are asked about the same x_t, those of {study.reference}'s trajectory; mean and 10–90 % band "
                "over samples.",
                findings.of_predictions(study),
            )
        )
    lead = f"How alike the models are to {study.reference}, the last one given."
    if study.foreign:
        lead += (
            f" {', '.join(study.foreign)} learned another noise process: asked at equal log-SNR, x_t rescaled to it, "
            f"so that all trajectories are those of {study.reference}'s process."
        )
    if study.plan is not None:
        lead += f" The plan: {study.plan}; dotted where the member changes."
    return Section("Agreement", lead, tuple(shown))


def _frequencies(study: Study) -> Section:
    taken: set[str] = set()
    size = next(iter(study.spectra.values())).size
    said = ", ".join(f"{name} {_span(rings)}" for name, rings in bands(size).items())
    settling = Shown(
        "frequency-settling",
        figures.settling_png(study),
        "Above: the power of the image foreseen at each step, by band, over the finished image's. Below: the power of "
        "the difference between the two, which says what is yet to come.",
        findings.of_settling(study),
    )
    spectra = [
        Shown(
            f"frequency-{_stem(name, taken)}",
            figures.spectrum_png(of, f"{name}: power by radial frequency"),
            "Mean power of the coefficients at each distance from frequency 0, over samples and channels.",
            findings.of_spectrum(of),
        )
        for name, of in study.spectra.items()
    ]
    lead = (
        f"Along each model's own trajectory. Bands are thirds of the frequencies up to Nyquist, in cycles per image: "
        f"{said} (with the corners of the spectrum); the mean brightness is in none. No window is used."
    )
    return Section("Frequencies", lead, (settling, *spectra))


def html(made: Sequence[Section], members: Mapping[str, str], provenance: Mapping[str, str]) -> str:
    """The page, its pictures inside. members: name to description."""
    parts = "".join(
        f"<h2>{escape(s.title)}</h2><p class=soft>{escape(s.lead)}</p>" + "".join(map(_figure, s.figures)) for s in made
    )
    nets = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in members.items())
    source = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in provenance.items())
    title = escape(f"Analysis of {' and '.join(members)}")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{STYLE}{_MORE}</style></head><body>
<h1>{title}</h1>
<p class="soft">hemstitch analyze: which experts run when, where models agree, which frequencies are settled when. Every
number drawn is in analysis.json, every figure in a file beside this one.</p>
{parts}
<h2>The models</h2><dl>{nets}</dl>
<h2>Provenance</h2><dl>{source}</dl>
</body></html>
"""


def _figure(shown: Shown) -> str:
    return (
        f'<figure><img alt="{escape(shown.shows)}" src="{data_of(shown.png)}">'
        f"<figcaption>{escape(shown.shows)} <strong>{escape(shown.found)}</strong></figcaption></figure>"
    )


def numbers(study: Study, uses: Mapping[str, ExpertUse]) -> dict[str, Any]:
    """Every number drawn, to six digits: experts, agreement (null where there is one model), frequency, trajectory."""
    agreement = None
    if study.latents:
        agreement = {
            "reference": study.reference,
            "foreign": list(study.foreign),
            "latents": {name: _band(band) for name, band in study.latents.items()},
            "x0": {name: _likeness(like) for name, like in study.x0.items()},
            "eps": {name: _likeness(like) for name, like in study.eps.items()},
        }
    return {
        "trajectory": {"t": _list(study.t), "log_snr": _list(study.log_snr)},
        "experts": {name: _use(use) for name, use in uses.items()},
        "agreement": agreement,
        "frequency": {
            name: {
                "coefficients": _list(ring_counts(of.size)),
                "bands": bands(of.size),
                "x": _list(of.x),
                "x0": _list(of.x0),
                "gap": _list(of.gap),
                "power": {band: _list(values) for band, values in of.power.items()},
                "unsettled": {band: _list(values) for band, values in of.unsettled.items()},
                "settled_from": {band: findings.settled_from(values) for band, values in of.unsettled.items()},
            }
            for name, of in study.spectra.items()
        },
    }


def _use(use: ExpertUse) -> dict[str, Any]:
    return {
        "top_k": use.top_k,
        "probabilities": _list(use.probabilities),
        "selected": use.selected.int().tolist(),
        "prior": use.prior.int().tolist(),
        "prior_loss": _list(use.prior_loss),
        "prior_loss_mean": _number(float(use.prior_loss.mean())),
        "selected_within_prior": _number(use.fit),
        "usage": _list(use.usage),
        "never": use.never,
        "shared": use.shared,
        "times": use.times.tolist(),
        "affinity": _list(use.affinity),
        "likeness": _list(use.likeness),
    }


def _band(band: Band) -> dict[str, Any]:
    return {"mean": _list(band.mean), "low": _list(band.low), "high": _list(band.high)}


def _likeness(like: Likeness) -> dict[str, Any]:
    return {"cosine": _band(like.cosine), "distance": _band(like.distance)}


def _list(values: Tensor) -> list[Any]:
    if values.ndim == 1:
        return [_number(v) for v in values.tolist()]
    return [_list(row) for row in values]


def _number(value: float) -> float | None:
    """Six digits; JSON has no infinity and no NaN."""
    return float(f"{value:.6g}") if abs(value) < float("inf") else None


def _span(rings: Sequence[int]) -> str:
    return f"{rings[0]}–{rings[-1]}" if len(rings) > 1 else str(rings[0])


def _stem(name: str, taken: set[str]) -> str:
    """A member's name as part of a file's, unlike those taken."""
    plain = "plan" if name == PLANNED else "".join(c if c.isalnum() or c in "-_" else "_" for c in name)
    stem, count = plain, 1
    while stem.lower() in taken:
        count += 1
        stem = f"{plain}-{count}"
    taken.add(stem.lower())
    return stem
