"""Invariance: a row under an adaptive plan is the row of the fixed plan of its own seam, whatever shares its batch."""

import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from hemstitch import AdaptivePlan, Guided, HemstitchError, Plan, Process, Stitched, StitchError, generate, sample
from hemstitch.bulk import write_samples
from hemstitch.cli.sampling import plan_of
from hemstitch.denoiser import Denoiser
from hemstitch.evaluate.curve import Setting, candidates_of
from hemstitch.identity import identity
from hemstitch.samplers import SAMPLERS, State
from hemstitch.sampling import advance, prepare, run
from hemstitch.stitch.adaptive import plan_of_data, rms_change
from hemstitch.stitch.calibration import calibrated, seams, signals

from .test_stitched import SPEC, network

K, N = 8, 6
SEEDS, LABELS = [(3, i) for i in range(N)], [i % 5 for i in range(N)]
PLAN = AdaptivePlan("small", "large", K, 0.0)


@pytest.fixture(scope="module")
def members():
    return {
        "small": network(0, Process("linear", learned_variance=True)),
        "large": network(1, Process("linear"), "switch_dit"),
        "flow": network(2, Process("flow", "flow"), "dtr"),
    }


def fitted(members, plan=PLAN, mean=4.5, **options):
    """A stitch under the plan, its threshold such that rows differ, and their seams."""
    found = signals(Stitched(members, plan), LABELS, seeds=SEEDS, **options).of(plan.signal)
    chosen = calibrated(found, mean, plan.side, plan.earliest, plan.latest)
    expected = seams(found, chosen.threshold, plan.side, plan.earliest, plan.latest)
    assert len(expected.unique()) > 1, "rows that switch at one step test nothing"
    return Stitched(members, replace(plan, threshold=chosen.threshold)), expected


def last_of(steps):
    *_, last = steps
    return last


def routed_by_hand(model, seam_N, **options):
    """The batch with the members of every row said outright: `first` for its seam's steps, then `then`."""
    job = prepare(model, LABELS, seeds=SEEDS, **options)
    names = list(model.members)
    first, then = names.index(model.plan.first), names.index(model.plan.then)
    state = replace(job.state, watch=None)
    with torch.no_grad():
        while not bool(state.done.all()):
            member = torch.where(state.step < seam_N, first, then)
            state = job.sampler.step(state, job.denoiser(state.x, state.t, job.labels, member=member))
    return state.x


VARIANTS = {
    "path": PLAN,
    "change": replace(PLAN, signal="change"),
    "change below": replace(PLAN, signal="change", side="below"),
    "bounded": replace(PLAN, earliest=4, latest=6),
    "to another process": replace(PLAN, then="flow"),
    "from another process": replace(PLAN, first="flow"),
}


@pytest.mark.parametrize("options", [{"sampler": s} for s in SAMPLERS] + [{"guidance": 2.0}, {"eta": 1.0}], ids=str)
def test_a_row_is_that_of_the_fixed_plan_of_its_seam(members, options, assert_close):
    model, expected = fitted(members, **options)
    last = last_of(sample(model, LABELS, seeds=SEEDS, **options))
    assert torch.equal(last.seam, expected)
    assert torch.equal(last.x, routed_by_hand(model, expected, **options))
    for i in range(N):
        fixed = Stitched(members, model.plan.fixed(int(expected[i])), process=model.process)
        assert_close(last.x[i : i + 1], generate(fixed, LABELS[i : i + 1], seeds=SEEDS[i : i + 1], **options))


@pytest.mark.parametrize("plan", VARIANTS.values(), ids=VARIANTS)
def test_every_rule_and_processes_that_differ(members, plan, assert_close):
    model, expected = fitted(members, plan, sampler="dpmpp_2m")
    last = last_of(sample(model, LABELS, seeds=SEEDS, sampler="dpmpp_2m"))
    assert torch.equal(last.seam, expected)
    assert plan.earliest <= int(expected.min()) <= int(expected.max()) <= plan.last_seam
    assert torch.equal(last.x, routed_by_hand(model, expected, sampler="dpmpp_2m"))
    for i in range(N):
        fixed = Stitched(members, model.plan.fixed(int(expected[i])), process=model.process)
        assert_close(last.x[i : i + 1], generate(fixed, LABELS[i : i + 1], seeds=SEEDS[i : i + 1], sampler="dpmpp_2m"))


def test_the_signals_are_what_they_say(members):
    """Against the estimates that the loop of the small member alone shows."""
    alone = Stitched(members, Plan.steps_each({"small": K}), process=members["large"].process)
    shown = [s.x0.double() for s in sample(alone, LABELS, seeds=SEEDS)]
    change = torch.stack([(b - a).square().mean((1, 2, 3)).sqrt() for a, b in pairwise(shown)], 1)
    found = signals(Stitched(members, PLAN), LABELS, seeds=SEEDS)
    torch.testing.assert_close(found.change[:, 1:], change, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.path[:, 1:], change.cumsum(1), rtol=1e-5, atol=1e-6)
    assert not found.change[:, 0].any()
    guided = signals(Guided(Stitched(members, PLAN), 2.0), LABELS, seeds=SEEDS)
    assert torch.equal(guided.path, signals(Stitched(members, PLAN), LABELS, seeds=SEEDS, guidance=2.0).path)
    assert not torch.equal(guided.path, found.path)


def test_heun_is_watched_at_the_first_evaluation_of_a_step(members):
    job = prepare(Stitched(members, PLAN), LABELS, seeds=SEEDS, sampler="heun")
    job = replace(job, state=replace(job.state, watch=replace(PLAN, threshold=math.inf).watch(N)))
    state, first = advance(job, job.state)
    assert state.stage.tolist() == [1] * N
    state, second = advance(job, state)
    assert torch.equal(state.watch.x0, first.x0)
    assert not torch.equal(first.x0, second.x0)
    state, third = advance(job, state)
    assert torch.equal(state.watch.path, rms_change(third.x0, first.x0))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_row_does_not_depend_on_its_batch(members, sampler, assert_close):
    model, expected = fitted(members, sampler=sampler)
    batch = last_of(sample(model, LABELS, seeds=SEEDS, sampler=sampler))
    for i in range(N):
        alone = last_of(sample(model, LABELS[i : i + 1], seeds=SEEDS[i : i + 1], sampler=sampler))
        assert alone.seam.tolist() == [int(expected[i])]
        assert_close(alone.x, batch.x[i : i + 1])
    other = [SEEDS[2], *((9, i) for i in range(N - 1))]
    among = last_of(sample(model, [LABELS[2], 4, 3, 2, 1, 0], seeds=other, sampler=sampler))
    assert among.seam[0] == expected[2]
    assert_close(among.x[:1], batch.x[2:3])


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m", "heun"])
def test_a_state_that_is_taken_apart_and_joined_goes_on(members, sampler):
    """Paused after every evaluation, Heun's half steps too; at one batch shape nothing changes to the bit."""
    model, expected = fitted(members, sampler=sampler)
    job = prepare(model, LABELS, seeds=SEEDS, sampler=sampler)
    state = job.state
    while not bool(state.done.all()):
        state, _ = advance(job, State.join([state.rows([0]), state.rows(range(1, N))]))
    assert torch.equal(state.watch.seam, expected)
    assert torch.equal(state.x, generate(model, LABELS, seeds=SEEDS, sampler=sampler))
    assert state.watch.x0 is None


def test_a_paused_job_runs_on(members):
    model, expected = fitted(members)
    job = prepare(model, LABELS, seeds=SEEDS)
    state = job.state
    for _ in range(3):
        state, _ = advance(job, state)
    rest = list(run(replace(job, state=state)))
    assert [s.index for s in rest] == list(range(3, K))
    assert torch.equal(rest[-1].seam, expected)
    assert torch.equal(rest[-1].x, generate(model, LABELS, seeds=SEEDS))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_rows_of_other_plans_and_steps_share_a_batch(members, sampler, assert_close):
    """Three rows under three plans, two of them adaptive, at different steps and stages."""
    model, _ = fitted(members, sampler=sampler)
    plans = [model.plan, replace(model.plan, signal="change", latest=5), Plan.steps_each({"small": 3, "large": 5})]
    stitches = [Stitched(members, plan) for plan in plans]
    jobs = [prepare(s, [i], seeds=[(3, i)], sampler=sampler) for i, s in enumerate(stitches)]
    states = [jobs[0].state]
    for count, job in zip((1, 3), jobs[1:], strict=True):
        state = job.state
        for _ in range(count):
            state, _ = advance(job, state)
        states.append(state)
    expected = [last_of(run(job)) for job in jobs]
    state, labels = State.join(states), torch.arange(3)
    assert state.watch.seam.tolist() == [K, 5, -1]
    done = {}
    with torch.no_grad():
        while len(state.step):
            rows = labels.tolist()
            routes = []
            for i, row in enumerate(rows):
                watch = state.watch.rows(torch.tensor([i])) if row < 2 else None
                routes.append(stitches[row].route(state.step[i : i + 1], state.t[i : i + 1], watch))
            said = stitches[0](state.x, state.t, labels, member=torch.cat(routes))
            watch = state.watch.after(state.step, state.stage, said.x0)
            state = replace(jobs[0].sampler.step(state, said), watch=watch)
            for i in state.done.nonzero().squeeze(1).tolist():
                done[rows[i]] = state.rows([i])
            left = (~state.done).nonzero().squeeze(1)
            state, labels = state.rows(left), labels[left]
    for row in range(3):
        assert_close(done[row].x, expected[row].x)
        assert done[row].watch.seam.tolist() == ([-1] if row == 2 else expected[row].seam.tolist())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_thresholds_that_always_or_never_hold_are_fixed_plans(members, sampler):
    def made(plan):
        return generate(Stitched(members, plan, process=members["large"].process), LABELS, seeds=SEEDS, sampler=sampler)

    assert torch.equal(made(replace(PLAN, threshold=0.0, earliest=3)), made(PLAN.fixed(3)))
    assert torch.equal(made(replace(PLAN, threshold=math.inf)), made(PLAN.fixed(K)))
    assert torch.equal(made(replace(PLAN, threshold=math.inf, latest=5)), made(PLAN.fixed(5)))
    assert torch.equal(made(replace(PLAN, threshold=-1.0, side="below", latest=5)), made(PLAN.fixed(5)))
    assert torch.equal(made(replace(PLAN, threshold=math.inf, side="below")), made(PLAN.fixed(2)))


class Counted(Denoiser):
    """A denoiser that counts the rows it is asked about."""

    def __init__(self, inner):
        self.inner, self.process, self.spec, self.rows = inner, inner.process, inner.spec, 0

    def __call__(self, x, t, cond=None, *, member=None):
        self.rows += len(x)
        return self.inner(x, t, cond)

    @property
    def device(self):
        return self.inner.device


def test_the_seams_are_the_cost(members):
    """No call beyond those of the rows' own plans."""
    model, expected = fitted(members)
    counted = {name: Counted(member) for name, member in members.items()}
    steps = list(sample(Stitched(counted, model.plan), LABELS, seeds=SEEDS))
    assert counted["small"].rows == int(steps[-1].seam.sum()) == int(expected.sum())
    assert counted["large"].rows == N * K - int(expected.sum())
    assert counted["flow"].rows == 0
    first, last = int(expected.min()), int(expected.max())
    assert [s.member for s in steps] == (
        ["small"] * first + ["small+large"] * (min(last, K) - first) + ["large"] * (K - last)
    )


def test_the_loop_waits_for_the_device_only_while_a_seam_may_be_decided(monkeypatch):
    watch, waits = replace(PLAN, threshold=1.5, earliest=3, latest=7).watch(2), []
    copy = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: waits.append(step) or copy(self))
    for step in range(K):
        x0 = torch.tensor([0.5, 1.0]).reshape(2, 1, 1, 1) * step
        watch = watch.after(torch.tensor([step, step]), torch.zeros(2, dtype=torch.int64), x0.expand(2, 1, 2, 2))
        assert (watch.x0 is None) == (step >= 3)
    assert watch.seam.tolist() == [4, 3]
    assert waits == [2, 3]
    watch = replace(PLAN, threshold=math.inf, earliest=3, latest=7).watch(2)
    waits.clear()
    for step in range(K):
        watch = watch.after(torch.tensor([step, step]), torch.zeros(2, dtype=torch.int64), torch.ones(2, 1, 2, 2))
        assert (watch.x0 is None) == (step >= 5)  # a seam at 7 needs no signal
    assert waits == [2, 3, 4, 5]


def test_a_fixed_plan_has_no_watch(members):
    job = prepare(Stitched(members, PLAN.fixed(3)), LABELS)
    state = job.state
    for _ in range(3):
        assert state.watch is None
        state, _ = advance(job, state)
    assert State.join([state.rows([0]), state.rows([1])]).watch is None
    assert all(step.seam is None for step in run(job))


@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("window", [(2, None), (4, 9), (5, 5), (12, 12)])
def test_calibration_is_nearest_of_all_thresholds(side, window):
    """Against every threshold tried one by one, on signals with ties."""
    earliest, latest = window
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(0, 20, (9, 12), generator=generator).double() / 4

    def by_hand(threshold):
        means = []
        for row in found.tolist():
            hits = [i + 1 for i, v in enumerate(row) if (v >= threshold if side == "above" else v <= threshold)]
            late = 12 if latest is None else latest
            means.append(next((s for s in hits if earliest <= s < late), late))
        return sum(means) / len(means)

    thresholds = [-math.inf, *(v / 8 for v in range(-1, 42)), math.inf]
    for target in torch.linspace(earliest, latest or 12, 7).tolist():
        chosen = calibrated(found, target, side, earliest, latest)
        assert chosen.mean_seam == pytest.approx(by_hand(chosen.threshold))
        best = min(abs(by_hand(t) - target) for t in thresholds)
        assert abs(chosen.mean_seam - target) == pytest.approx(best, abs=1e-12)
        per_sample = seams(found, chosen.threshold, side, earliest, latest)
        assert float(per_sample.double().mean()) == pytest.approx(chosen.mean_seam)


@pytest.mark.parametrize("signal", ["path", "change"])
def test_the_calibrated_mean_is_what_sampling_has(members, signal):
    plan = replace(PLAN, signal=signal)
    labels, seeds = [i % 5 for i in range(40)], [(1, i) for i in range(40)]
    found = signals(Stitched(members, plan), labels, seeds=seeds).of(signal)
    chosen = calibrated(found, 4.5)
    last = last_of(sample(Stitched(members, replace(plan, threshold=chosen.threshold)), labels, seeds=seeds))
    assert float(last.seam.double().mean()) == pytest.approx(chosen.mean_seam)
    if signal == "path":  # of which no two values are equal
        assert abs(chosen.mean_seam - 4.5) <= 1 / 80


def test_signals_that_cannot_be_calibrated_are_refused():
    with pytest.raises(StitchError, match=r"between earliest and latest, 2\.\.8; not 1"):
        calibrated(torch.rand(3, 8), 1.0)
    with pytest.raises(StitchError, match=r"3\.\.5; not 6"):
        calibrated(torch.rand(3, 8), 6.0, earliest=3, latest=5)
    with pytest.raises(StitchError, match="between earliest and latest"):
        calibrated(torch.rand(3, 8), math.nan)
    with pytest.raises(StitchError, match="not finite"):
        calibrated(torch.full((3, 8), math.nan), 3.0)
    with pytest.raises(HemstitchError, match=r"signals are \(N, K\)"):
        calibrated(torch.rand(8), 3.0)
    with pytest.raises(StitchError, match="side is above or below, not 'left'"):
        seams(torch.rand(3, 8), 1.0, "left")
    with pytest.raises(StitchError, match="2 <= earliest <= latest <= steps"):
        seams(torch.rand(3, 8), 1.0, latest=9)


@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        AdaptivePlan("a", "b", 50, 0.1 + 0.2, "change", "below", 5, 40),
        replace(PLAN, threshold=math.inf),
        replace(PLAN, threshold=-math.inf),
        replace(PLAN, threshold=3),
    ],
)
def test_json_round_trip(plan):
    assert AdaptivePlan.from_json(plan.to_json()) == plan
    assert plan_of_data(json.loads(plan.to_json())) == plan
    fixed = plan.fixed(2)
    assert plan_of_data(json.loads(fixed.to_json())) == fixed


def test_what_a_plan_says_of_itself():
    plan = AdaptivePlan("small", "large", 50, 0.125, "change", "below", 5, 40)
    assert str(plan) == "small → large where change ≤ 0.125, after 5 to 40 of 50 steps"
    assert str(PLAN) == "small → large where path ≥ 0, after 2 to 8 of 8 steps or never"
    assert plan.fixed(5).counts == {"small": 5, "large": 45}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"first": ""}, "names two members"),
        ({"then": 3}, "names two members"),
        ({"then": "small"}, "small alone is a fixed plan"),
        ({"threshold": math.nan}, "a threshold is a number; got nan"),
        ({"threshold": True}, "a threshold is a number"),
        ({"threshold": "1"}, "a threshold is a number"),
        ({"signal": "loss"}, "signal is path or change, not 'loss'"),
        ({"side": "left"}, "side is above or below"),
        ({"earliest": 1}, "a change takes two estimates; got earliest 1"),
        ({"earliest": 5, "latest": 4}, "2 <= earliest <= latest <= steps"),
        ({"latest": 9}, "2 <= earliest <= latest <= steps"),
        ({"steps": 1}, "2 <= earliest <= latest <= steps"),
        ({"steps": 8.0}, "whole numbers"),
        ({"steps": 10**6}, "100,000 steps at most"),
    ],
)
def test_plans_that_cannot_be_are_refused(changed, said):
    with pytest.raises(StitchError, match=said):
        replace(PLAN, **changed)
    with pytest.raises(StitchError, match=said):
        AdaptivePlan.from_data({**json.loads(PLAN.to_json()), **changed})


def test_files_that_are_no_adaptive_plans_are_refused():
    data = json.loads(PLAN.to_json())
    for wrong in ({**data, "more": 1}, {k: v for k, v in data.items() if k != "side"}, {**data, "rule": "explicit"}):
        with pytest.raises(StitchError, match=r'"rule": "adaptive" and the keys first, then, steps'):
            AdaptivePlan.from_data(wrong)
    with pytest.raises(StitchError, match="give a fixed plan"):
        Plan.from_data(data)


def test_where_the_members_must_be_known_beforehand_it_is_refused(members):
    model = Stitched(members, replace(PLAN, threshold=1.0))
    x, t = torch.zeros(2, *SPEC.shape), torch.full((2,), 500.0)
    with pytest.raises(StitchError, match="the time alone does not tell the member"):
        model(x, t, torch.tensor([0, 1]))
    with pytest.raises(StitchError, match="pass state"):
        model.route(torch.zeros(2, dtype=torch.int64), t)
    with pytest.raises(StitchError, match="the plan names huge; the members are small, large, flow"):
        Stitched(members, replace(PLAN, then="huge"))
    with pytest.raises(HemstitchError, match="the plan is for 8 steps and steps is 9"):
        generate(model, [0], steps=9)
    assert model.process == members["large"].process


def test_a_pipeline_is_refused():
    route = pytest.importorskip("hemstitch.bridge.route", reason="needs diffusers", exc_type=ImportError)
    with pytest.raises(StitchError, match="an AdaptivePlan needs hemstitch's own sampler"):
        route.Choice.of(["small", "large"], None, PLAN)


def test_the_identity_tells_plans_apart(members):
    plans = [PLAN, replace(PLAN, threshold=0.5), replace(PLAN, latest=7), PLAN.fixed(4)]
    told = [identity(Stitched(members, plan)) for plan in plans]
    assert len(set(told)) == len(plans)
    assert identity(Stitched(members, replace(PLAN))) == told[0]


def test_the_command_line_reads_its_file(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(PLAN.to_json())
    assert plan_of(SimpleNamespace(plan=path, fraction=None, steps=None), ["small", "large"]) == PLAN


def test_bulk_sampling_goes_on_with_the_same_bytes(members, tmp_path):
    model, _ = fitted(members)
    options = {"count": 11, "batch": 3, "per_shard": 6, "formats": ["latents"], "seed": 3}

    def written(folder):
        list(write_samples(model, folder, **options))
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}

    straight = written(tmp_path / "a")
    assert len(straight) == 2
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    sorted((tmp_path / "b").rglob("*.safetensors"))[0].unlink()
    assert written(tmp_path / "b") == straight
    other = Stitched(members, replace(model.plan, threshold=model.plan.threshold + 1))
    with pytest.raises(HemstitchError, match="made otherwise"):
        list(write_samples(other, tmp_path / "b", **options))


def test_a_curve_measures_it_at_the_mean_of_its_seams(members):
    """Beside the fixed plan of nearly that cost, on the same seeds."""
    model, _ = fitted(members)
    plans = [(None, model.plan), (None, PLAN.fixed(4))]
    cost = {"small": 1.0, "large": 3.0, "flow": 3.0}
    candidates = candidates_of(plans, "large", cost, [1.0])
    assert [c.plan for c in candidates[1:3]] == [model.plan, PLAN.fixed(4)]
    assert [c.plan.steps for c in candidates[3:]] == [5]  # in the time of the fixed plan
    labels = torch.tensor(LABELS * 2)
    extractor = SimpleNamespace(name="raw")
    setting = Setting(members, "large", labels, len(labels), 5, "ddim", extractor, None, cost)
    images, seam = setting.images(model, 1.0, 3)
    last = last_of(sample(model, labels[3:8], seeds=[(0, i) for i in range(3, 8)]))
    assert torch.equal(images, last.x)
    assert torch.equal(seam, last.seam)
    assert setting.images(Stitched(members, PLAN.fixed(4)), 1.0, 3)[1] is None
