"""What training minimises: regression on the network's target, the variational bound for a learned variance, and
Switch-DiT's prior loss.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..models import DiT, SwitchDiT
from ..process import Process, per_row, posterior
from .weighting import ByTime, constant


class Losses(NamedTuple):
    """loss: the scalar to minimise. noise: (B,) regression plus bound, weighted. mse: (B,) weighted regression.

    vb: (B,) variational bound in bits per dimension, zeros without a learned variance. prior: the prior loss before its
    weight, a scalar, zero for networks without gates.
    """

    loss: Tensor
    noise: Tensor
    mse: Tensor
    vb: Tensor
    prior: Tensor


class Objective(nn.Module):
    """The training loss of one batch as one module, so that a data-parallel wrapper sees every use of the weights.

    weighting: what `WEIGHTINGS` builds; none counts every sample alike. The prior loss is added `prior_weight` times.
    """

    def __init__(
        self, net: DiT, process: Process, weighting: nn.Module | None = None, prior_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.net = net
        self.process = process
        self.weighting = ByTime(constant) if weighting is None else weighting
        self.prior_weight = prior_weight

    def forward(self, x0: Tensor, t_B: Tensor, eps: Tensor, y_B: Tensor | None) -> Losses:
        """x0, eps: (B, C, H, W); t_B: (B,) times of the process; y_B: (B,) labels, the null label where dropped."""
        process, C = self.process, x0.shape[1]
        # begun before the network, so that the masks have reached the host by the time they are matched
        routed = isinstance(self.net, SwitchDiT) and self.prior_weight > 0
        matching = cast(SwitchDiT, self.net).begin_matching() if routed else None
        x = process.add_noise(x0, eps, t_B)
        output = cast(Tensor, self.net(x, process.network_time(t_B), y_B)).float()
        mse_B = (output[:, :C] - process.target(x0, eps, t_B)).square().flatten(1).mean(1)
        if process.learned_variance:
            # scaled by T / 1000 beside a rescaled regression (Nichol & Dhariwal 2021, the released hybrid loss)
            fraction = (output[:, C:] + 1) / 2
            predicted, _ = process.x0_eps(output[:, :C].detach(), x, t_B)
            vb_B = variational_bound(process, x0, x, predicted, fraction, t_B) * (process.timesteps / 1000)
        else:
            vb_B = torch.zeros_like(mse_B)
        mse_B, noise_B = self.weighting(process, t_B, mse_B, vb_B)
        prior = torch.zeros((), device=x0.device)
        if matching is not None:
            prior = cast(SwitchDiT, self.net).prior_loss(process.network_time(t_B), matching)
        return Losses(noise_B.mean() + self.prior_weight * prior, noise_B, mse_B, vb_B, prior)


def variational_bound(
    process: Process, x0: Tensor, x: Tensor, predicted_x0: Tensor, fraction: Tensor, t_B: Tensor
) -> Tensor:
    """(B,) bits per dimension of the step t -> t-1: KL(q || p), or at t = 0 the likelihood of 8-bit data.

    Ho et al. (2020), eq. 5 and 13, with the log-variance `fraction` of the way from beta-tilde to beta. The mean is the
    caller's to detach.
    """
    t_B = t_B.double()
    first_B = t_B < 1
    alpha_t, sigma_t = process.alpha_sigma(t_B)
    alpha_s, sigma_s = process.alpha_sigma(t_B.clamp(min=1) - 1)
    alpha_s = torch.where(first_B, torch.ones_like(alpha_s), alpha_s)
    sigma_s = torch.where(first_B, torch.zeros_like(sigma_s), sigma_s)
    q = posterior(alpha_t, sigma_t, alpha_s, sigma_s)
    # beta-tilde is 0 at t = 0: the bound there borrows its value at t = 1, as in the released code
    ones = torch.ones_like(t_B)
    at_one = posterior(*process.alpha_sigma(ones), *process.alpha_sigma(0 * ones)).log_small
    log_small = per_row(torch.where(first_B, at_one, q.log_small), x)
    log_variance = fraction * per_row(q.log_large, x) + (1 - fraction) * log_small
    of_x, of_x0 = per_row(q.of_x, x), per_row(q.of_x0, x)
    true_mean = of_x * x + of_x0 * x0
    mean = of_x * x + of_x0 * predicted_x0
    kl = 0.5 * (
        log_variance
        - log_small
        - 1
        + torch.exp(log_small - log_variance)
        + (true_mean - mean).square() * torch.exp(-log_variance)
    )
    likelihood = -discretised_log_likelihood(x0, mean, log_variance / 2)
    bits = torch.where(first_B.reshape(-1, 1, 1, 1), likelihood, kl) / math.log(2)
    return bits.flatten(1).mean(1)


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of 8-bit values in -1..1 under a Gaussian, each value its bin (Ho et al. 2020, eq. 13).

    The normal distribution function is its tanh approximation, as in the released code.
    """

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    inverse = torch.exp(-log_scale)
    upper, lower = cdf(inverse * (x - mean + 1 / 255)), cdf(inverse * (x - mean - 1 / 255))
    inside = torch.log((upper - lower).clamp(min=1e-12))
    below = torch.log(upper.clamp(min=1e-12))
    above = torch.log((1 - lower).clamp(min=1e-12))
    return torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside))
