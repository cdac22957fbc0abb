"""Which experts of a Switch-DiT run at which timestep, and how that compares with the prior it was trained towards.

Shape suffixes: T train timesteps, N blocks, M experts, K top-k, U = N·M, S timesteps of the affinity maps.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MissingExtraError
from ..models import SwitchDiT
from ..models.switch_dit import jensen_shannon, top_k_mask

SHARED = 0.95  # of the timesteps: an expert selected at so many is the shared one of its block
AFFINITY_TIMES = 100  # timesteps of an affinity map at most, evenly spaced


@dataclass(frozen=True)
class ExpertUse:
    """What the gates of a Switch-DiT say, on the host. Experts and blocks count from 0.

    probabilities: (T, N, M) before the top-k. selected: (T, N, M) of 0 and 1, the top k. prior: (T, N, M) of 0 and 1,
    the sliding window with its columns matched to these experts as in training. prior_loss: (T,) Jensen-Shannon
    divergence from it, in nats, 0..log 2 (PAPERS 1.4). usage: (N, M), the share of timesteps at which each is selected.
    times: (S,) of the affinity maps. affinity: (S, S), of two timesteps the share of selected experts in common, the
    mean over blocks of |both| / k. likeness: (S, S) cosine similarity of their gate probabilities over all blocks.
    """

    top_k: int
    probabilities: Tensor
    selected: Tensor
    prior: Tensor
    prior_loss: Tensor
    usage: Tensor
    times: Tensor
    affinity: Tensor
    likeness: Tensor

    @property
    def never(self) -> list[tuple[int, int]]:
        """(block, expert) of those that no timestep selects."""
        return [(int(n), int(m)) for n, m in (self.usage == 0).nonzero()]

    @property
    def shared(self) -> list[tuple[int, int]]:
        """(block, expert) of those selected at `SHARED` of the timesteps or more, none where all experts always are."""
        if self.top_k == self.usage.shape[1]:
            return []
        return [(int(n), int(m)) for n, m in (self.usage >= SHARED).nonzero()]

    @property
    def fit(self) -> float:
        """The share of the model's selections that lie within the matched prior's window."""
        return float((self.selected * self.prior).sum() / self.selected.sum())


@torch.no_grad()
def expert_map(net: SwitchDiT) -> Tensor:
    """(T, N, M) gate probabilities of every expert, before the top-k, on the host."""
    times = torch.arange(net.config.timesteps, device=next(net.parameters()).device)
    return net.gate_probabilities(times).cpu()


@torch.no_grad()
def expert_use(net: SwitchDiT) -> ExpertUse:
    """Everything about the gates of a network, at all of its timesteps."""
    T, N, M = net.config.timesteps, net.config.depth, net.config.experts
    map_TNM = expert_map(net)
    selected_TNM = top_k_mask(map_TNM, net.config.top_k)
    prior_TU = net.begin_matching().prior().cpu()
    loss_T = jensen_shannon(map_TNM.flatten(1) / N, prior_TU / prior_TU.sum(1, keepdim=True))
    times_S = torch.linspace(0, T - 1, min(T, AFFINITY_TIMES), dtype=torch.float64).round().long()
    return ExpertUse(
        top_k=net.config.top_k,
        probabilities=map_TNM,
        selected=selected_TNM,
        prior=prior_TU.view(T, N, M),
        prior_loss=loss_T,
        usage=selected_TNM.double().mean(0),
        times=times_S,
        affinity=affinity(selected_TNM[times_S]),
        likeness=likeness(map_TNM[times_S]),
    )


def affinity(selected_SNM: Tensor) -> Tensor:
    """(S, S) mean over blocks of the share of selected experts that two timesteps have in common."""
    chosen_SU = selected_SNM.double().flatten(1)
    return chosen_SU @ chosen_SU.T / chosen_SU[0].sum()


def likeness(map_SNM: Tensor) -> Tensor:
    """(S, S) cosine similarity of gate probabilities, all blocks as one vector. Equal, flat gates have 1 as well."""
    unit_SU = torch.nn.functional.normalize(map_SNM.double().flatten(1), dim=1)
    return unit_SU @ unit_SU.T


def expert_map_png(map_TNM: Tensor, title: str) -> bytes:
    """Timesteps from left (clean) to right (noise), one row per expert, blocks apart; dark is probable."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("matplotlib", "report") from None
    _, N, M = map_TNM.shape
    figure = Figure(figsize=(7, min(9, max(2.2, 0.14 * N * M + 1.2))), dpi=120, layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(
        map_TNM.flatten(1).T.numpy(), aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest"
    )
    for block in range(1, N):
        axes.axhline(block * M - 0.5, color="#c44", linewidth=0.8)
    every = max(1, -(-N // 14))
    axes.set_yticks([block * M + (M - 1) / 2 for block in range(0, N, every)], [str(b) for b in range(0, N, every)])
    axes.set_xlabel("timestep (0 is clean)")
    axes.set_ylabel(f"block, its {M} experts")
    axes.set_title(title, fontsize=10, loc="left")
    figure.colorbar(picture, ax=axes, label="probability")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
