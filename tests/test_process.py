import pytest
import torch

from hemstitch import HemstitchError, Process
from hemstitch.process import PREDICTIONS, SCHEDULES, posterior

PROCESSES = [Process(s, p) for s in SCHEDULES for p in PREDICTIONS] + [
    Process("flow", "flow", reverse_time=True),
    Process("linear", "v", timesteps=100),
]


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_target_and_x0_eps_are_inverse(process):
    x0, eps = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    t = torch.linspace(0.05, 0.95, 5, dtype=torch.float64) * process.t_max
    x = process.add_noise(x0, eps, t)
    back_x0, back_eps = process.x0_eps(process.target(x0, eps, t), x, t)
    torch.testing.assert_close(back_x0, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back_eps, eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_of_inverts_log_snr(schedule):
    process = Process(schedule)
    t = torch.linspace(0.01, 0.99, 23, dtype=torch.float64) * process.t_max
    torch.testing.assert_close(process.time_of(process.log_snr(t)), t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "scaled_linear"])
def test_whole_timesteps_are_the_table(schedule):
    process = Process(schedule)
    alpha, sigma = process.alpha_sigma(torch.arange(1000))
    torch.testing.assert_close(alpha**2, process.alphas_cumprod(), rtol=1e-10, atol=0)
    torch.testing.assert_close(sigma**2, 1 - process.alphas_cumprod(), rtol=1e-10, atol=1e-15)


def test_flow_is_defined_at_pure_noise():
    x, t = torch.randn(2, 1, 2, 2), torch.ones(2)
    for prediction in PREDICTIONS:
        x0, eps = Process("flow", prediction).x0_eps(torch.randn_like(x), x, t)
        assert torch.isfinite(x0).all()
        assert torch.isfinite(eps).all()


def test_posterior_is_the_table_of_ddpm():
    """beta-tilde and the mean's coefficients of Ho et al. (2020), eq. 7, from the betas themselves."""
    process = Process("linear")
    bar = process.alphas_cumprod()
    beta = 1 - bar[1:] / bar[:-1]
    alpha, sigma = process.alpha_sigma(torch.arange(1000))
    q = posterior(alpha[1:], sigma[1:], alpha[:-1], sigma[:-1])
    torch.testing.assert_close(torch.exp(q.log_large), beta, rtol=1e-8, atol=0)
    torch.testing.assert_close(torch.exp(q.log_small), beta * (1 - bar[:-1]) / (1 - bar[1:]), rtol=1e-8, atol=0)
    torch.testing.assert_close(q.of_x0, bar[:-1].sqrt() * beta / (1 - bar[1:]), rtol=1e-8, atol=0)
    torch.testing.assert_close(q.of_x, (1 - beta).sqrt() * (1 - bar[:-1]) / (1 - bar[1:]), rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": "quadratic"}, "schedule is one of"),
        ({"prediction": "noise"}, "prediction is one of"),
        ({"timesteps": 1}, "at least 2"),
        ({"schedule": "flow", "prediction": "flow", "learned_variance": True}, "learned variance"),
        ({"reverse_time": True}, "reverse_time"),
        ({"schedule": "cosine", "betas": (0.1, 0.2)}, "betas belong"),
        ({"betas": (0.2, 0.1)}, "betas rise"),
    ],
)
def test_bad_processes_are_refused(options, said):
    with pytest.raises(HemstitchError, match=said):
        Process(**options)
