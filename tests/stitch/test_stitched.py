"""Invariance: a sample is the same alone, in a batch, and among rows of other plans, timesteps and guidance."""

import pytest
import torch

from hemstitch import (
    Guided,
    HemstitchError,
    NetConfig,
    NetDenoiser,
    Plan,
    Process,
    Spec,
    Stitched,
    build,
    generate,
    sample,
)
from hemstitch.grid import timesteps
from hemstitch.samplers import SAMPLERS, Levels, State, init
from hemstitch.sampling import prepare
from hemstitch.seeds import keys, normal

SPEC = Spec(2, 4, 5, null_label=True)


def network(seed, process, family="dit", spec=SPEC):
    torch.manual_seed(seed)
    net = build(
        NetConfig(
            family,
            input_size=spec.size,
            channels=spec.channels,
            patch=2,
            width=16,
            depth=2,
            heads=2,
            num_classes=spec.num_classes,
            null_label=spec.null_label,
            learned_variance=process.learned_variance,
        )
    )
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return NetDenoiser(net.eval(), process, spec)


@pytest.fixture(scope="module")
def members():
    return {
        "small": network(0, Process("linear", learned_variance=True)),
        "switch": network(1, Process("linear"), "switch_dit"),
        "flow": network(2, Process("flow", "flow"), "dtr"),
    }


PLAN = Plan.steps_each({"small": 3, "flow": 2, "switch": 3})


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_alone_and_in_a_batch_of_seven(members, sampler, assert_close):
    model = Stitched(members, PLAN)
    labels, seeds = [i % 5 for i in range(7)], [(3, i) for i in range(7)]
    batch = generate(model, labels, seeds=seeds, sampler=sampler, guidance=2.0)
    for i in range(7):
        alone = generate(model, labels[i : i + 1], seeds=seeds[i : i + 1], sampler=sampler, guidance=2.0)
        assert_close(alone, batch[i : i + 1])
    again = generate(model, labels, seeds=seeds, sampler=sampler, guidance=2.0)
    assert torch.equal(again, batch)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_at_a_fixed_batch_shape_a_row_is_bitwise_its_own(members, sampler):
    """The other rows' seeds and labels change; row 2 does not."""
    model = Stitched(members, PLAN)
    first = generate(model, [0, 1, 2, 3], seeds=[1, 2, 3, 4], sampler=sampler, guidance=2.0)
    second = generate(model, [4, 0, 2, 1], seeds=[9, 8, 3, 7], sampler=sampler, guidance=2.0)
    assert torch.equal(first[2], second[2])


@pytest.mark.parametrize("sampler", SAMPLERS)
@torch.no_grad()
def test_among_rows_of_other_plans_steps_and_guidance(members, sampler, assert_close):
    """Three requests with plans, grids and guidance of their own join one batch at different steps."""
    plans = [PLAN, Plan.steps_each({"switch": 5}), Plan.explicit(["flow", "small"] * 3)]
    scales, solver = [2.0, 1.0, 3.0], SAMPLERS[sampler]
    process = members["switch"].process
    stitches = [Stitched(members, plan, process=process) for plan in plans]
    expected = [
        generate(stitch, [i], seeds=[(5, i)], sampler=sampler, guidance=scale)
        for i, (stitch, scale) in enumerate(zip(stitches, scales, strict=True))
    ]
    states = [
        init(normal(keys([(5, i)]), 0, SPEC.shape), Levels.of(process, timesteps(process, plan.steps)), keys([(5, i)]))
        for i, plan in enumerate(plans)
    ]
    labels = torch.arange(3)

    def advance(batch, rows):
        route = torch.cat([stitches[row].route(batch.step[i : i + 1], batch.t) for i, row in enumerate(rows)])
        denoiser = Guided(stitches[0], torch.tensor([scales[row] for row in rows]))
        return solver.step(batch, denoiser(batch.x, batch.t, labels[rows], member=route))

    states[0] = advance(states[0], [0])  # ahead of the others
    batch, rows, finished = State.join(states), [0, 1, 2], {}
    while rows:
        batch = advance(batch, rows)
        for i, row in enumerate(rows):
            if batch.done[i]:
                finished[row] = batch.x[i : i + 1]
        left = (~batch.done).nonzero().squeeze(1)
        rows, batch = [rows[i] for i in left], batch.rows(left)
    for row in range(3):
        assert_close(finished[row], expected[row])


@torch.no_grad()
def test_a_row_that_changes_member_does_not_change_another(members, assert_close):
    """Two plans in one batch of shared levels: DPM-Solver++ restarts the row at its seam, and that row alone."""
    process = members["switch"].process
    plans = [Plan.steps_each({"small": 3, "switch": 3}), Plan.steps_each({"switch": 6})]
    stitches = [Stitched(members, plan, process=process) for plan in plans]
    key = keys([(1, 0), (1, 1)])
    state = init(normal(key, 0, SPEC.shape), Levels.of(process, timesteps(process, 6)), key)
    for step in range(6):
        route = torch.cat([s.route(torch.tensor([step]), state.t) for s in stitches])
        state = SAMPLERS["dpmpp_2m"].step(state, stitches[0](state.x, state.t, torch.tensor([1, 2]), member=route))
    for i, stitch in enumerate(stitches):
        assert_close(state.x[i : i + 1], generate(stitch, [i + 1], seeds=[(1, i)], sampler="dpmpp_2m"))


def test_guided_members_and_guided_stitches_keep_the_plan(members, assert_close):
    stitch = Stitched(members, PLAN)
    outer = generate(stitch, [1], seeds=[1], guidance=2.0)
    assert_close(generate(Guided(stitch, 2.0), [1], seeds=[1]), outer)


def test_one_member_stitched_is_that_member(members):
    plan = Plan.steps_each({"switch": 6})
    plain = generate(members["switch"], [1, 2], seeds=[1, 2], steps=6, guidance=2.0)
    assert torch.equal(generate(Stitched(members, plan), [1, 2], seeds=[1, 2], guidance=2.0), plain)


@torch.no_grad()
def test_mixed_times_in_one_batch_go_each_to_its_own_member(members, assert_close):
    stitch = Stitched(members, PLAN)
    grid = timesteps(stitch.process, PLAN.steps)
    x, labels = torch.randn(8, *SPEC.shape), torch.arange(8) % 5
    together = stitch(x, grid, labels)
    assert together.member.tolist() == [0, 0, 0, 2, 2, 1, 1, 1]
    for i in range(8):
        alone = stitch(x[i : i + 1], grid[i : i + 1], labels[i : i + 1])
        assert_close(together.x0[i : i + 1], alone.x0)
        assert_close(together.eps[i : i + 1], alone.eps)


def test_the_loop_shows_every_step(members):
    steps = list(sample(Stitched(members, PLAN), [0, 1], sampler="heun"))
    assert [s.index for s in steps] == list(range(8))
    assert [s.member for s in steps] == ["small"] * 3 + ["flow"] * 2 + ["switch"] * 3
    assert steps[0].t == 999
    assert torch.equal(steps[-1].x, steps[-1].x0)


def test_a_caller_may_stop_early(members):
    loop = sample(Stitched(members, PLAN), [0, 1])
    assert next(loop).index == 0
    loop.close()


def test_guidance_interval_and_per_row_scale(members, assert_close):
    model = members["switch"]
    plain = generate(model, [1, 2], seeds=[1, 2], steps=4)
    assert torch.equal(generate(model, [1, 2], seeds=[1, 2], steps=4, guidance=3.0, guidance_interval=(50, 60)), plain)
    guided = generate(model, [1, 2], seeds=[1, 2], steps=4, guidance=3.0)
    assert torch.equal(
        generate(model, [1, 2], seeds=[1, 2], steps=4, guidance=3.0, guidance_interval=(-50, 50)), guided
    )
    mixed = generate(model, [1, 2], seeds=[1, 2], steps=4, guidance=[1.0, 3.0])
    assert_close(mixed[:1], plain[:1])
    assert_close(mixed[1:], guided[1:])
    half = generate(model, [1], seeds=[1], steps=4, guidance=3.0, guidance_channels=1)
    assert not torch.equal(half, guided[:1])


def test_the_checked_request_is_a_value(members):
    job = prepare(members["switch"], [1, 2], steps=4)
    assert job.state.x.shape == (2, *SPEC.shape)
    assert job.state.step.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": [5]}, r"labels lie in 0\.\.4; got 5"),
        ({"labels": [-1]}, "labels lie in"),
        ({}, "say how many"),
        ({"num": 2}, "pass labels="),
        ({"labels": [1, 2], "seeds": [1]}, "agree on the number"),
        ({"labels": [1], "steps": 0}, "the plan is for 8 steps and steps is 0"),
        ({"labels": [1.7]}, "whole numbers"),
        ({"labels": [1], "guidance": float("nan")}, "finite"),
        ({"labels": [1], "grid": [float("nan")] * 8}, "finite"),
        ({"labels": [1], "steps": 7}, "the plan is for 8 steps"),
        ({"labels": [1], "sampler": "rk4"}, "sampler is one of"),
        ({"labels": [1], "sampler": "heun", "eta": 0.5}, "eta belongs"),
        ({"labels": [1], "eta": 1.5}, "eta lies in"),
        ({"labels": [1], "guidance": [1.0, 2.0]}, "one guidance scale per row"),
        ({"labels": [1], "guidance": 2.0, "guidance_channels": 3}, "guidance_channels lies in"),
        ({"labels": [1], "guidance": 2.0, "guidance_interval": (3, 1)}, "low < high"),
        ({"labels": [1], "noise": torch.zeros(1, 3, 4, 4)}, "noise is"),
        ({"labels": []}, "at least one"),
    ],
)
def test_bad_requests_are_refused_at_once(members, options, said):
    with pytest.raises(HemstitchError, match=said):
        sample(Stitched(members, PLAN), **options)


def test_members_that_cannot_be_stitched_are_named(members):
    process = Process("linear")
    bigger = network(0, process, spec=Spec(2, 8, 5, null_label=True))
    with pytest.raises(HemstitchError, match="size: switch has 4, big has 8"):
        Stitched({"switch": members["switch"], "big": bigger}, Plan.explicit(["big"]))
    fewer = network(0, process, spec=Spec(3, 4, 4, null_label=True))
    with pytest.raises(HemstitchError, match=r"channels: .* has 2, .* has 3; num_classes: .* has 5, .* has 4"):
        Stitched({"switch": members["switch"], "few": fewer}, Plan.explicit(["few"]))
    spaces = [network(0, process, spec=Spec(2, 4, 5, True, space)) for space in ("a", "b")]
    with pytest.raises(HemstitchError, match="space: x has 'a', y has 'b'"):
        Stitched(dict(zip("xy", spaces, strict=True)), Plan.explicit(["x"]))
    with pytest.raises(HemstitchError, match="the plan names nobody; the members are small, switch, flow"):
        Stitched(members, Plan.explicit(["nobody"]))


def test_unconditional_models_and_guidance():
    model = network(0, Process("linear"), spec=Spec(1, 4, 0))
    assert generate(model, num=2, steps=3).shape == (2, 1, 4, 4)
    with pytest.raises(HemstitchError, match="unconditional"):
        generate(model, num=2, steps=3, guidance=2.0)
    with pytest.raises(HemstitchError, match="pass num="):
        generate(model, [1], steps=3)
    without_null = network(0, Process("linear"), spec=Spec(1, 4, 3, null_label=False))
    with pytest.raises(HemstitchError, match="label dropout"):
        generate(without_null, [1], steps=3, guidance=2.0)
