"""Switch-DiT: a sparse mixture of experts before each block, routed by the timestep (Park et al., ECCV 2024).

Every expert is one affine map and the gate sees only the timestep, so the k experts of a sample merge into one affine
map before they meet its tokens:

    Σ_j p_j (z W_jᵀ + b_j) = z (Σ_j p_j W_j)ᵀ + Σ_j p_j b_j

One matrix product per sample takes the place of k per-expert products, and one for the whole batch where it shares a
timestep, as in sampling.

Shape suffixes: B batch, L tokens, D width, M experts, K top-k, N blocks, T train timesteps, U = N·M.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .config import NetConfig
from .dit import DiT
from .dtr import sliding_window

# Bytes of a merged map from which one row at a time is faster on a CPU; smaller ones are bound by calls.
LARGE_MAP = 2**20


class Experts(nn.Module):
    """M affine maps D to D, zero at first, so that the network starts as a plain DiT."""

    def __init__(self, experts: int, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(experts, width, width))  # (M, in, out)
        self.b = nn.Parameter(torch.zeros(experts, width))

    def forward(self, z_BLD: Tensor, gate_BM: Tensor) -> Tensor:
        """z ∘ (1 + Σ_j gate_j E_j(z)); gates of B rows, or of one for all."""
        w, b = self.w, self.b
        if len(gate_BM) < len(z_BLD) or len(z_BLD) == 1:
            gate = gate_BM.to(w.dtype)
            mixed = (gate @ w.flatten(1)).view(w.shape[1:])
            return torch.addcmul(z_BLD, z_BLD, F.linear(z_BLD, mixed.T, (gate @ b)[0]))
        on_cpu = z_BLD.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        large = w[0].nbytes >= LARGE_MAP
        route = _RoutedRowByRow if on_cpu and large and not torch.compiler.is_compiling() else _RoutedPerRow
        return cast(Tensor, route.apply(z_BLD, gate_BM, w, b))  # type: ignore[no-untyped-call]


class _RoutedPerRow(torch.autograd.Function):
    """`Experts.forward` with a timestep per row, the rows merged together. Backward makes the merged maps again instead
    of keeping B of them, which would be larger than any activation (D² against L·D numbers a row).
    """

    @staticmethod
    def forward(ctx: Any, z_BLD: Tensor, gate_BM: Tensor, w: Tensor, b: Tensor) -> Tensor:
        kind = z_BLD.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else z_BLD.dtype
        gate = gate_BM.to(dtype)
        mixed_BDD = _mixed(gate, w.to(dtype))
        total_BLD = torch.baddbmm((gate @ b.to(dtype)).unsqueeze(1), z_BLD.to(dtype), mixed_BDD)
        ctx.save_for_backward(z_BLD, gate_BM, w, b, total_BLD)
        return torch.addcmul(z_BLD, z_BLD, total_BLD.to(z_BLD.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z_BLD, gate_BM, w, b, total_BLD = ctx.saved_tensors
        dtype, grad = total_BLD.dtype, grads[0]
        gate, w_cast = gate_BM.to(dtype), w.to(dtype)
        mixed_BDD = _mixed(gate, w_cast)
        of_total = (grad * z_BLD).to(dtype)
        through = torch.bmm(of_total, mixed_BDD.transpose(1, 2))
        grad_z = torch.addcmul(grad, grad, total_BLD.to(grad.dtype)) + through
        grad_mixed = torch.bmm(z_BLD.to(dtype).transpose(1, 2), of_total).flatten(1)
        grad_bias = of_total.sum(1)
        grad_gate = (grad_mixed @ w_cast.flatten(1).T).float() + (grad_bias @ b.to(dtype).T).float()
        grad_w = (gate.T @ grad_mixed).view_as(w).to(w.dtype)
        return grad_z, grad_gate.to(gate_BM.dtype), grad_w, (gate.T @ grad_bias).to(b.dtype)


class _RoutedRowByRow(torch.autograd.Function):
    """The same for a CPU in one precision: a row's merged map stays in the cache, its unselected experts are not read,
    and no memory is taken for B maps.
    """

    @staticmethod
    def forward(ctx: Any, z_BLD: Tensor, gate_BM: Tensor, w: Tensor, b: Tensor) -> Tensor:
        ctx.selected = [[(m, g) for m, g in enumerate(row) if g] for row in gate_BM.tolist()]
        bias_BD = gate_BM.to(b.dtype) @ b
        total_BLD, mixed_DD = torch.empty_like(z_BLD), torch.empty_like(w[0])
        for i, selected in enumerate(ctx.selected):
            torch.addmm(bias_BD[i], z_BLD[i], _mix_into(mixed_DD, selected, w), out=total_BLD[i])
        ctx.save_for_backward(z_BLD, gate_BM, w, b, total_BLD)
        return torch.addcmul(z_BLD, z_BLD, total_BLD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z_BLD, gate_BM, w, b, total_BLD = ctx.saved_tensors
        of_total = grads[0] * z_BLD
        grad_z = torch.addcmul(grads[0], grads[0], total_BLD)
        grad_w, grad_bias = torch.zeros_like(w), of_total.sum(1)
        grad_gate = (grad_bias @ b.T).to(gate_BM.dtype)
        mixed_DD, grad_mixed = torch.empty_like(w[0]), torch.empty_like(w[0])
        for i, selected in enumerate(ctx.selected):
            grad_z[i].addmm_(of_total[i], _mix_into(mixed_DD, selected, w).T)
            torch.mm(z_BLD[i].T, of_total[i], out=grad_mixed)
            for m, g in selected:
                grad_w[m].add_(grad_mixed, alpha=g)
                grad_gate[i, m] += torch.dot(grad_mixed.flatten(), w[m].flatten())
        return grad_z, grad_gate, grad_w, gate_BM.T.to(b.dtype) @ grad_bias


def _mix_into(mixed_DD: Tensor, selected: list[tuple[int, float]], w: Tensor) -> Tensor:
    """One row's merged map, written over `mixed_DD`."""
    mixed_DD.zero_()
    for m, g in selected:
        mixed_DD.add_(w[m], alpha=g)
    return mixed_DD


def _mixed(gate_BM: Tensor, w_MDD: Tensor) -> Tensor:
    """(B, D, D) from inputs to outputs: each row's selected experts as one map."""
    return (gate_BM @ w_MDD.flatten(1)).view(-1, *w_MDD.shape[1:])


class ExpertRouter(nn.Module):
    """routed = z ∘ (1 + Σ_{j in top-k} p_j(t) E_j(z)), p = softmax(Linear(SiLU(e_t))), not renormalised."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.f_gate = nn.Sequential(nn.SiLU(), nn.Linear(config.width, config.experts))
        self.experts = Experts(config.experts, config.width)

    def forward(self, z_BLD: Tensor, gate_BM: Tensor) -> Tensor:
        return self.experts(z_BLD, gate_BM)


class SwitchDiT(DiT):
    """A DiT with expert routers, and the diffusion prior loss that shapes their gates."""

    router = ExpertRouter

    def routing(self, e_BD: Tensor, t_B: Tensor) -> Sequence[Tensor]:
        """(B, M) per block: the probabilities of the top k experts, 0 for the others."""
        p_BNM = self._probabilities(e_BD)
        return (p_BNM * top_k_mask(p_BNM, self.config.top_k)).unbind(1)

    def gate_probabilities(self, t_B: Tensor) -> Tensor:
        """(B, N, M) float32 probabilities of every block's gate at times t, before the top-k."""
        with torch.autocast(t_B.device.type, enabled=False):
            return self._probabilities(self.t_embedder(t_B))

    def _probabilities(self, e_BD: Tensor) -> Tensor:
        """Every block's gate in one product, its softmax in float32 whatever the weights are."""
        gates = [cast(nn.Linear, cast(ExpertRouter, r).f_gate[1]) for r in self.routers]
        weight = torch.cat([g.weight for g in gates])
        with torch.autocast(e_BD.device.type, enabled=False):
            logits = F.linear(F.silu(e_BD.to(weight.dtype)), weight, torch.cat([g.bias for g in gates]))
            return torch.softmax(logits.float().view(len(e_BD), self.config.depth, self.config.experts), -1)

    @torch.no_grad()
    def begin_matching(self) -> Matching:
        """Send the top-k masks of all timesteps to the host, without waiting for them."""
        device = next(self.parameters()).device
        all_T = torch.arange(self.config.timesteps, device=device)
        return Matching(self.config, top_k_mask(self.gate_probabilities(all_T), self.config.top_k).flatten(1))

    def prior_loss(self, t_B: Tensor, matching: Matching | None = None) -> Tensor:
        """The diffusion prior loss at times t, a scalar (Switch-DiT, section 4.3; PAPERS 1.4).

        The Jensen-Shannon divergence between each row's gate probabilities over all N·M experts and the prior's window
        for its timestep, the prior's columns first matched to the experts that the top-k masks resemble most.
        matching: one begun earlier under the same weights, so that an accelerator need not wait for the host.
        """
        config = self.config
        matching = self.begin_matching() if matching is None else matching
        with torch.autocast(t_B.device.type, enabled=False):
            P = self.gate_probabilities(t_B).flatten(1) / config.depth
            R = matching.prior()[t_B.round().long().clamp(0, config.timesteps - 1)]
            return jensen_shannon(P, R / R.sum(1, keepdim=True)).mean()


class Matching:
    """The prior with its columns in the order of the experts, once the masks (T, U) have reached the host."""

    def __init__(self, config: NetConfig, mask_TU: Tensor) -> None:
        self.config = config
        self.device = mask_TU.device
        # counts up to T are exact in float32; the assignment needs no more of the masks than these products
        with torch.autocast(self.device.type, enabled=False):
            self._overlap_UU = mask_TU.T @ switch_prior(config, self.device)
        self._chosen_U = mask_TU.sum(0)
        self._arrived = None
        if self.device.type == "cuda":
            self._overlap_UU = self._overlap_UU.to("cpu", non_blocking=True)
            self._chosen_U = self._chosen_U.to("cpu", non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def prior(self) -> Tensor:
        """(T, U), on the device of the masks."""
        if self._arrived is not None:
            self._arrived.synchronize()
        window = switch_prior(self.config, torch.device("cpu")).sum(0)
        distance_UU = self._chosen_U[:, None] + window[None] - 2 * self._overlap_UU
        _, column = linear_sum_assignment(distance_UU.numpy())
        return switch_prior(self.config, self.device)[:, torch.as_tensor(column).to(self.device, non_blocking=True)]


def top_k_mask(p: Tensor, k: int) -> Tensor:
    """1 where an entry is among the k largest of the last axis."""
    return torch.zeros_like(p).scatter_(-1, p.topk(k, -1).indices, 1.0)


@lru_cache(maxsize=64)
def switch_prior(config: NetConfig, device: torch.device | None = None) -> Tensor:
    """(T, N·M): DTR's sliding window over all experts of all blocks, of which each timestep selects N·k."""
    units = config.depth * config.experts
    return sliding_window(config.timesteps, units, config.mask_alpha, config.top_k / config.experts).to(device)


def jensen_shannon(P: Tensor, R: Tensor, epsilon: float = 1e-6) -> Tensor:
    """(B,) Jensen-Shannon divergence of each row, with epsilon inside the logarithms."""
    M = (P + R) / 2
    log_P, log_R, log_M = (torch.log(q + epsilon) for q in (P, R, M))
    return (P * (log_P - log_M) + R * (log_R - log_M)).sum(1) / 2
