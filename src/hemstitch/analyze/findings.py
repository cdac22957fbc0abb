"""What the numbers of an analysis say, one sentence a figure, written from the numbers alone."""

from __future__ import annotations

import torch
from torch import Tensor

from .experts import SHARED, ExpertUse
from .frequency import BANDS, Spectra
from .study import Study

CLOSE = 0.99  # cosine similarity called close
SETTLED = 0.1  # of the finished image's power that a settled band may lack


def of_gates(use: ExpertUse) -> str:
    top_TN = use.probabilities.amax(2)
    return (
        f"The likeliest expert of a block has a probability of {float(top_TN.mean()):.2f} on average over timesteps "
        f"and blocks, where gates that cannot choose would give each {1 / use.usage.shape[1]:.2f}."
    )


def of_selection(use: ExpertUse) -> str:
    return (
        f"{use.fit:.1%} of the model's selections lie in the window of the prior; chance alone would place "
        f"{float(use.prior.mean()):.1%} there."
    )


def of_prior_loss(use: ExpertUse) -> str:
    worst = int(use.prior_loss.argmax())
    return (
        f"It is {float(use.prior_loss.mean()):.4f} nats on average and at most {float(use.prior_loss[worst]):.4f}, at "
        f"timestep {worst}, where {torch.log(torch.tensor(2.0)):.3f} would be disjoint."
    )


def of_usage(use: ExpertUse) -> str:
    N, M = use.usage.shape
    if use.top_k == M:
        return f"All {M} experts of a block are always selected: there is nothing to route."
    never = f"{len(use.never)} of {N * M} experts are never selected: {_named(use.never)}." if use.never else ""
    never = never or f"Each of the {N * M} experts is selected somewhere."
    with_one = len({block for block, _ in use.shared})
    if not with_one:
        return f"{never} No block has an expert selected at {SHARED:.0%} of the timesteps or more."
    return (
        f"{never} {with_one} of {N} blocks have a shared expert, selected at {SHARED:.0%} of the timesteps or more: "
        f"{_named(use.shared)}."
    )


def of_affinity(use: ExpertUse) -> str:
    S = len(use.times)
    away = torch.ones(S, S).triu(1).bool()
    if not away.any():
        return "There is one timestep only."
    M, k = use.usage.shape[1], use.top_k
    return (
        f"The cleanest and the noisiest timestep have {float(use.affinity[0, -1]):.0%} of their experts in common "
        f"(gate cosine {float(use.likeness[0, -1]):.2f}); two different ones of those shown have "
        f"{float(use.affinity[away].mean()):.0%} on average; with {k} of {M} it cannot be less than "
        f"{max(0, 2 * k - M) / k:.0%}."
    )


def of_latents(study: Study) -> str:
    K = study.steps
    parts = []
    for name, band in study.latents.items():
        below = _first(band.mean < CLOSE)
        until = "throughout" if below is None else f"before step {below} of {K}" if below else "nowhere"
        parts.append(f"{name} has a mean cosine of {CLOSE} or more {until} and ends at {float(band.mean[-1]):.3f}")
    return "; ".join(parts) + "."


def of_predictions(study: Study) -> str:
    parts = []
    for name, like in study.eps.items():
        cosine, x0 = like.cosine.mean, study.x0[name]
        least = int(cosine.argmin())
        where = int(x0.distance.mean.argmax())
        parts.append(
            f"{name}'s eps is least alike at step {least} (mean cosine {float(cosine[least]):.3f}) and its x0 is "
            f"farthest away at step {where} (relative distance {float(x0.distance.mean[where]):.2f}, in the last step "
            f"{float(x0.distance.mean[-1]):.3f})"
        )
    return "; ".join(parts) + "."


def of_spectrum(spectra: Spectra) -> str:
    """How steeply the finished image's power falls, and how it begins: the mean of the rings from 1 to Nyquist."""
    finished, top = spectra.x[-1], spectra.size // 2
    if top < 2:
        return "The image is too small to have more than one frequency."
    start = spectra.x[0, 1 : top + 1]
    return (
        f"From 1 cycle per image to {top}, at Nyquist, the finished image's power goes from "
        f"{float(finished[1]):.3g} to {float(finished[top]):.3g}; the trajectory starts from noise, "
        f"{float(start.mean()):.2f} on average over these rings."
    )


def of_settling(study: Study) -> str:
    parts = []
    for name, spectra in study.spectra.items():
        steps = {band: settled_from(share) for band, share in spectra.unsettled.items()}
        said = ", ".join(f"{steps[band]} ({band})" for band in BANDS if band in steps)
        parts.append(f"{name} from step {said}")
    return (
        f"All but {SETTLED:.0%} of a band's finished power is in place, and stays so, for "
        + "; ".join(parts)
        + f", of {study.steps}."
    )


def settled_from(unsettled_K: Tensor) -> int:
    """The first step from which on no more than `SETTLED` is lacking; K if that is nowhere."""
    lacking = (unsettled_K > SETTLED).nonzero()
    return int(lacking[-1]) + 1 if len(lacking) else 0


def _first(mask: Tensor) -> int | None:
    found = mask.nonzero()
    return int(found[0]) if len(found) else None


def _named(experts: list[tuple[int, int]], most: int = 12) -> str:
    """Experts with their blocks, the block first."""
    said = ", ".join(f"{n}/{m}" for n, m in experts[:most])
    return said + (f" and {len(experts) - most} more" if len(experts) > most else "") + " (block/expert)"
