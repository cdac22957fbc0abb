import pytest
import torch

from hemstitch import HemstitchError, Process
from hemstitch.grid import GRIDS, timesteps

LINEAR, FLOW = Process("linear"), Process("flow", "flow")


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [2, 7, 50, 250])
def test_grids_fall_within_the_process(grid, steps):
    t = timesteps(LINEAR, steps, grid)
    assert len(t) == steps
    assert bool((t[1:] < t[:-1]).all())
    assert 0 <= float(t[-1]) < float(t[0]) <= 999
    if grid != "leading":
        assert float(t[0]) == 999


def test_flow_grids_start_at_pure_noise():
    assert timesteps(FLOW, 4).tolist() == [1.0, 0.75, 0.5, 0.25]
    with pytest.raises(HemstitchError, match="trailing"):
        timesteps(FLOW, 4, "leading")


def test_logsnr_is_uniform():
    log_snr = LINEAR.log_snr(timesteps(LINEAR, 20, "logsnr"))
    torch.testing.assert_close(log_snr.diff(), log_snr.diff().mean().expand(19))


@pytest.mark.parametrize(
    ("steps", "grid", "said"),
    [
        (0, "released", "at least 1"),
        (1, "released", "trailing"),
        (1001, "linspace", "ask for fewer"),
        (5, "karras", "grid is one of"),
        (2, [10.0, 10.0], "fall strictly"),
        (2, [10.0], "as many"),
        (2, [1000.0, 5.0], "lie within"),
    ],
)
def test_bad_grids_are_refused(steps, grid, said):
    with pytest.raises(HemstitchError, match=said):
        timesteps(LINEAR, steps, grid)
