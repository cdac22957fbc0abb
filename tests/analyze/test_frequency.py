"""Oracle: white noise, single waves, Parseval."""

import math

import pytest
import torch

from hemstitch.analyze.findings import settled_from
from hemstitch.analyze.frequency import Spectra, bands, radial_power, ring_counts, rings


def wave(size, fx, fy):
    i = torch.arange(size, dtype=torch.float64)
    return torch.cos(2 * math.pi * (fx * i[None] + fy * i[:, None]) / size)[None, None]


def test_white_noise_is_flat():
    N, size = 2000, 16
    x = torch.randn(N, 3, size, size, generator=torch.Generator().manual_seed(0))
    power_R = radial_power(x).mean(0)
    # a coefficient's power is exponential, but each is its mirror's twin: half of them are independent
    error_R = torch.sqrt(2 / (3 * N * ring_counts(size)))
    assert ((power_R - 1).abs() < 4 * error_R).all()


@pytest.mark.parametrize(("fx", "fy", "ring"), [(3, 0, 3), (0, 5, 5), (3, 4, 5), (1, 1, 1), (8, 8, 11)])
def test_a_wave_is_in_its_ring(fx, fy, ring):
    power = radial_power(wave(16, fx, fy))[0] * ring_counts(16)
    square = float(wave(16, fx, fy).square().sum())
    assert float(power[ring]) == pytest.approx(square)
    assert float(power.sum()) == pytest.approx(square)


@pytest.mark.parametrize("size", [4, 7, 8, 15])
def test_parseval(size):
    x = torch.randn(5, 2, size, size)
    energy = (radial_power(x) * ring_counts(size)).sum(1)
    torch.testing.assert_close(energy, x.double().square().sum((2, 3)).mean(1))


def test_brightness_is_ring_zero_alone_and_in_no_band():
    power = radial_power(torch.full((1, 1, 8, 8), 0.5))[0]
    assert float(power[0]) == pytest.approx(64 * 0.25)
    assert float(power[1:].abs().max()) < 1e-20
    assert all(0 not in members for members in bands(8).values())


@pytest.mark.parametrize("size", [2, 4, 5, 6, 8, 12, 32, 33])
def test_bands_part_the_rings(size):
    found = bands(size)
    assert [r for members in found.values() for r in members] == list(range(1, int(rings(size).max()) + 1))
    assert list(found) == ["low", "middle", "high"][-len(found) :]
    assert len(found) == 3 or size < 6


def test_thirds():
    assert {name: (members[0], members[-1]) for name, members in bands(24).items()} == {
        "low": (1, 4),
        "middle": (5, 8),
        "high": (9, 17),
    }


def test_power_and_what_is_lacking_by_band():
    """A finished image of a slow and a fast wave, the fast one foreseen from the second step on, at half its height."""
    slow, fast = wave(12, 1, 0), wave(12, 5, 0)
    foreseen = [slow, slow + fast / 2, slow + fast]
    finished = foreseen[-1]
    spectra = Spectra(
        torch.cat([radial_power(finished)] * 4),
        torch.cat([radial_power(x0) for x0 in foreseen]),
        torch.cat([radial_power(finished - x0) for x0 in foreseen]),
        12,
    )
    torch.testing.assert_close(spectra.power["low"], torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(spectra.power["high"], torch.tensor([0, 0.25, 1], dtype=torch.float64))
    torch.testing.assert_close(spectra.unsettled["high"], torch.tensor([1, 0.25, 0], dtype=torch.float64))
    assert settled_from(spectra.unsettled["low"]) == 0
    assert settled_from(spectra.unsettled["high"]) == 2


def test_settled_means_for_good():
    assert settled_from(torch.tensor([0.05, 0.3, 0.05, 0.0])) == 2
    assert settled_from(torch.tensor([0.05, 0.3])) == 2
