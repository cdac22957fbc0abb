"""Switch-DiT: a sparse mixture of experts before each block, routed by the timestep (Park et al., ECCV 2024).

Every expert is one affine map and the gate sees only the timestep, so the k experts of a sample merge into one affine
map before they meet its tokens:

    Σ_j p_j (z W_jᵀ + b_j) = z (Σ_j p_j W_j)ᵀ + Σ_j p_j b_j

One matrix product per sample takes the place of k per-expert products, and one for the whole batch where it shares a
timestep, as in sampling.

Shape suffixes: B batch, L tokens, D width, M experts, K top-k, N blocks, T train timesteps.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .config import NetConfig
from .dit import DiT
from .dtr import sliding_window


class Experts(nn.Module):
    """M affine maps D to D, zero at first, so that the network starts as a plain DiT."""

    def __init__(self, experts: int, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(experts, width, width))  # (M, in, out)
        self.b = nn.Parameter(torch.zeros(experts, width))


class ExpertRouter(nn.Module):
    """routed = z ∘ (1 + Σ_{j in top-k} p_j(t) E_j(z)), p = softmax(Linear(SiLU(e_t))), not renormalised."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.f_gate = nn.Sequential(nn.SiLU(), nn.Linear(config.width, config.experts))
        self.experts = Experts(config.experts, config.width)
        self.top_k = config.top_k

    def probabilities(self, e_BD: Tensor) -> Tensor:
        """(B, M) float32 gate probabilities before the top-k."""
        return torch.softmax(self.f_gate(e_BD).float(), -1)

    def gates(self, e_BD: Tensor) -> Tensor:
        """(B, M): the probabilities of the top k experts, 0 for the others."""
        p_BM = self.probabilities(e_BD)
        return p_BM * top_k_mask(p_BM, self.top_k)

    def merged(self, gate_BM: Tensor) -> tuple[Tensor, Tensor]:
        """The selected experts as one affine map per row: (B, D, D) from inputs to outputs, and (B, D)."""
        w, b = self.experts.w, self.experts.b
        gate = gate_BM.to(w.dtype)
        return (gate @ w.flatten(1)).view(-1, *w.shape[1:]), gate @ b

    def forward(self, z_BLD: Tensor, e_BD: Tensor, t_B: Tensor) -> Tensor:
        w_BDD, b_BD = self.merged(self.gates(e_BD))
        if len(w_BDD) == 1:
            return torch.addcmul(z_BLD, z_BLD, F.linear(z_BLD, w_BDD[0].T, b_BD[0]))
        return torch.addcmul(z_BLD, z_BLD, torch.baddbmm(b_BD.unsqueeze(1), z_BLD, w_BDD))


class SwitchDiT(DiT):
    """A DiT with expert routers, and the diffusion prior loss that shapes their gates."""

    def gate_probabilities(self, t_B: Tensor) -> Tensor:
        """(B, N, M) probabilities of every block's gate at times t, before the top-k."""
        e_BD = self.t_embedder(t_B)
        return torch.stack([cast(ExpertRouter, r).probabilities(e_BD) for r in self.routers], 1)

    def prior_loss(self, t_B: Tensor) -> Tensor:
        """The diffusion prior loss at times t, a scalar (Switch-DiT, section 4.3; PAPERS 1.4).

        The Jensen-Shannon divergence between each row's gate probabilities over all N·M experts and the prior's window
        for its timestep, the prior's columns first matched to the experts that the top-k masks resemble most.
        """
        config = self.config
        with torch.no_grad():
            all_T = torch.arange(config.timesteps, device=t_B.device)
            prior_TU = switch_prior(config).to(t_B.device)
            mask_TU = top_k_mask(self.gate_probabilities(all_T), config.top_k).flatten(1)
            prior_TU = prior_TU[:, match_columns(mask_TU, prior_TU)]
        P = self.gate_probabilities(t_B).flatten(1) / config.depth
        R = prior_TU[t_B.round().long().clamp(0, config.timesteps - 1)]
        return jensen_shannon(P, R / R.sum(1, keepdim=True)).mean()


def top_k_mask(p: Tensor, k: int) -> Tensor:
    """1 where an entry is among the k largest of the last axis."""
    return torch.zeros_like(p).scatter_(-1, p.topk(k, -1).indices, 1.0)


def switch_prior(config: NetConfig) -> Tensor:
    """(T, N·M): DTR's sliding window over all experts of all blocks, of which each timestep selects N·k."""
    units = config.depth * config.experts
    return sliding_window(config.timesteps, units, config.mask_alpha, config.top_k / config.experts)


def match_columns(mask_TU: Tensor, prior_TU: Tensor) -> Tensor:
    """(U,): which prior column goes to each expert, by least total L1 distance (Hungarian assignment)."""
    distance_UU = mask_TU.sum(0)[:, None] + prior_TU.sum(0)[None] - 2 * mask_TU.T @ prior_TU
    _, column = linear_sum_assignment(distance_UU.cpu().numpy())
    return torch.as_tensor(column, device=mask_TU.device)


def jensen_shannon(P: Tensor, R: Tensor, epsilon: float = 1e-6) -> Tensor:
    """(B,) Jensen-Shannon divergence of each row, with epsilon inside the logarithms."""
    M = (P + R) / 2
    log_P, log_R, log_M = (torch.log(q + epsilon) for q in (P, R, M))
    return (P * (log_P - log_M) + R * (log_R - log_M)).sum(1) / 2
