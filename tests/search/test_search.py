"""The search against members of which the best plan is known, and what is kept, refused and left out."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch

import hemstitch as hs
from hemstitch import HemstitchError, NetConfig, NetDenoiser, Plan, Process, Spec, Stitched, build, generate
from hemstitch.denoiser import Denoiser, Prediction
from hemstitch.evaluate.extractors import wrapped
from hemstitch.evaluate.frechet import Moments
from hemstitch.grid import timesteps
from hemstitch.process import per_row
from hemstitch.stitch.search import api, report
from hemstitch.stitch.search.cost import Cost, Costs
from hemstitch.stitch.search.frontier import Option
from hemstitch.stitch.search.trunk import Candidate, Ground, sampled

PROCESS = Process("linear")
SPEC = Spec(1, 4)


class Normal(Denoiser):
    """The posterior mean of unit-normal pixels about a mean, and off by `wrong` where the log-SNR is within `where`."""

    def __init__(self, name, wrong=0.0, where=(-99.0, 99.0), spec=SPEC, takes=0.0):
        self.process, self.spec, self.identity = PROCESS, spec, f"{name} {wrong} {where}"
        self.wrong, self.where, self.takes = wrong, where, takes

    device = torch.device("cpu")

    def __call__(self, x, t, cond=None, *, member=None):
        time.sleep(self.takes)
        alpha, sigma = (per_row(v, x) for v in self.process.alpha_sigma(t))
        x0 = alpha * 0.25 * x / (alpha**2 * 0.25 + sigma**2)
        log_snr = self.process.log_snr(t)
        off = ((log_snr >= self.where[0]) & (log_snr <= self.where[1])).double() * self.wrong
        x0 = x0 + per_row(off, x)
        return Prediction(x0, (x - alpha * x0) / sigma)


EARLY, LATE = (-99.0, -1.0), (-1.0, 99.0)


@pytest.fixture
def priced(monkeypatch):
    """Costs that a test sets, by member: milliseconds of a batch, twice that where guided."""
    table = {"small": 1.0, "middle": 2.5, "large": 5.0}

    def fixed(members, *, batch, guided, **more):
        entries = [Cost(n, g, table[n] * (1 + g), 0.01, None, 0) for g in guided for n in members]
        return Costs("CPU of a test", "float32", 1, batch, "ddim", tuple(entries), "now")

    monkeypatch.setattr(api, "measure_costs", fixed)
    return table


def looked_for(members, budget=0.6, **more):
    options = {"steps": [12], "samples": 64, "batch": 8, "trajectories": 8}
    return hs.search(members, budget, **options | more)


@pytest.mark.parametrize("where", [LATE, EARLY])  # LATE: small may go first, T-Stitch's case; EARLY: it may go last
def test_finds_the_order_that_loses_nothing(priced, where):
    members = {"large": Normal("large"), "small": Normal("small", 0.4, where)}
    log_snr = PROCESS.log_snr(timesteps(PROCESS, 12)).tolist()
    needed = ["large" if where[0] <= v <= where[1] else "small" for v in log_snr]
    budget = sum(5 if name == "large" else 1 for name in needed) / 60
    found = looked_for(members, budget)
    assert list(found.plan.assignment) == needed
    assert found.results[0].found.judged.gap == pytest.approx(0, abs=1e-9)
    if where is EARLY:
        fraction = found.results[0].fraction.judged
        assert fraction.gap > 10 * fraction.gap_half_width
        assert "plain fraction" in found.verdict
        assert ": better" in found.verdict


def test_a_plain_fraction_is_said_to_be_as_good(priced):
    found = looked_for({"large": Normal("large"), "small": Normal("small", 0.4, LATE)})
    assert "is a plain fraction" in found.verdict or "A plain fraction is as good" in found.verdict


def test_three_members_and_several_budgets(priced):
    """The middle one is right where the small one is wrong, but for the end."""
    members = {
        "small": Normal("small", 0.5, (-2.0, 99.0)),
        "middle": Normal("middle", 0.5, (3.0, 99.0)),
        "large": Normal("large"),
    }
    found = looked_for(members, [0.45, 0.8], samples=96)
    low, high = (result.found for result in found.results)
    assert low.share <= 0.45
    assert high.share <= 0.8
    assert high.judged.distance <= low.judged.distance + 1e-9
    assert set(low.plan.counts) == {"small", "middle", "large"}
    assert low.judged.distance <= min(p.judged.distance for p in found.points if p.judged and p.share <= 0.45) + 1e-9
    assert [a.share for a in found.frontier] == sorted(a.share for a in found.frontier)


def test_the_expected_order_is_the_measured_one(priced):
    members = {"large": Normal("large"), "small": Normal("small", 0.4, LATE)}
    found = looked_for(members)
    first = [found.expected_gap(Plan.steps_each({"small": k, "large": 12 - k})) for k in (6, 8, 10, 12)]
    assert first == sorted(first)
    assert found.expected_gap(Plan.steps_each({"large": 6, "small": 6})) > first[0]


FEATURES = wrapped(lambda images: images.float().flatten(1)[:, :8] / 64, "eight pixels")


def test_frechet_distance_to_a_reference(priced):
    """A small member that is wrong at the end; the reference is what the large one makes."""
    members = {"large": Normal("large"), "small": Normal("small", 1.0, LATE)}
    x = generate(members["large"], num=400, steps=12, seeds=[(9, i) for i in range(400)])
    from hemstitch.stitch.search.judge import Pixels

    reference = Moments.of(FEATURES(Pixels(SPEC)(x))["pool"])
    found = looked_for(members, reference=reference, extractor=FEATURES, samples=128, batch=16)
    assert "Fréchet" in found.unit
    log_snr = PROCESS.log_snr(timesteps(PROCESS, 12)).tolist()
    wrong = [v for v, name in zip(log_snr, found.plan.assignment, strict=True) if name == "small" and v >= LATE[0] + 1]
    assert not wrong, str(found.plan)


def comparable(found):
    data = found.to_data()
    for volatile in ("seconds", "images_of_the_largest", "provenance"):
        data.pop(volatile)
    return json.loads(json.dumps(data))


def test_deterministic_and_resumed_where_it_stopped(priced, tmp_path, monkeypatch):
    members = {"large": Normal("large"), "small": Normal("small", 0.4, EARLY)}
    whole = comparable(looked_for(members))
    assert comparable(looked_for(members)) == whole
    for stop in (1, 4, 9):
        turns = iter(range(stop))

        def broken_off(turn, turns=turns):
            if next(turns, None) is None:
                raise KeyboardInterrupt

        out = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            looked_for(members, out=out, progress=broken_off)
        assert comparable(looked_for(members, out=out)) == whole
    monkeypatch.setattr("hemstitch.stitch.search.store.sampled", None)  # all of it is there
    assert comparable(looked_for(members, out=out)) == whole


def test_damaged_rows_are_sampled_again(priced, tmp_path):
    members = {"large": Normal("large"), "small": Normal("small", 0.4, EARLY)}
    whole = comparable(looked_for(members, out=tmp_path / "s"))
    paths = sorted((tmp_path / "s" / "rows").glob("*.safetensors"))
    paths[0].write_bytes(paths[0].read_bytes()[:40])
    paths[1].unlink()
    assert comparable(looked_for(members, out=tmp_path / "s")) == whole


def test_another_search_in_the_same_folder_is_refused(priced, tmp_path):
    members = {"large": Normal("large"), "small": Normal("small", 0.4, EARLY)}
    looked_for(members, out=tmp_path / "s")
    with pytest.raises(HemstitchError, match="of other seed"):
        looked_for(members, out=tmp_path / "s", seed=1)
    looked_for(members, 0.8, out=tmp_path / "s")  # another budget goes on with what is there


def test_fewer_steps_are_tried_unless_the_number_is_fixed(priced):
    members = {"large": Normal("large"), "small": Normal("small", 0.4, LATE)}
    steps = {p.plan.steps for p in looked_for(members, 0.5, steps=12).points}
    assert len(steps) > 2
    only = {p.plan.steps for p in looked_for(members, 0.5).points if p.kind != "fewer steps"}
    assert only == {12}


def network(seed, width):
    torch.manual_seed(seed)
    net = build(NetConfig("dit", 4, 1, 2, width, 2, 2, 3, learned_variance=False))
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.15)
    return NetDenoiser(net.eval(), PROCESS, Spec(1, 4, 3, null_label=True))


@pytest.fixture(scope="module")
def networks():
    return {"small": network(0, 8), "large": network(1, 16)}


def test_searched_guidance_is_what_sampling_with_its_interval_gives(priced, networks):
    found = looked_for(networks, 0.5, guidance=3.0, guidance_interval="search", steps=[6], samples=32)
    point = found.results[0].found
    assert point.share <= 0.5
    chosen = {p.guidance_interval for p in found.points}
    assert len(chosen) > 1  # more than guidance everywhere was tried
    with_interval = next(p for p in found.points if p.guidance_interval is not None)
    marks = marks_of(with_interval)
    assert 0 <= sum(marks) < 6
    ground = Ground(networks, torch.arange(8) % 3, api.sampler_of("ddim"), guidance=3.0, batch=8)
    ((_, x),) = sampled(ground, [Candidate(with_interval.plan, marks)], range(8))
    interval = {"guidance": 3.0, "guidance_interval": with_interval.guidance_interval}
    assert torch.equal(x, generate(Stitched(networks, with_interval.plan), [i % 3 for i in range(8)], **interval))


def marks_of(point):
    low, high = point.guidance_interval
    log_snr = PROCESS.log_snr(timesteps(PROCESS, point.plan.steps))
    return tuple(bool(low <= v <= high) for v in log_snr.tolist())


def test_guidance_asked_for_in_an_interval_is_kept(priced, networks):
    found = looked_for(networks, 0.8, guidance=3.0, guidance_interval=(-2.0, 2.0), steps=[6], samples=32)
    assert {p.guidance_interval for p in found.points} == {None}
    full = next(p for p in found.points if p.kind == "largest")
    guided = sum(marks_of(type(full)(**{**vars(full), "guidance_interval": (-2.0, 2.0)})))
    assert 0 < guided < 6
    assert full.ms_per_image * 8 == pytest.approx(5 * (6 + guided))


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m", "heun", "euler"])
def test_every_sampler(priced, networks, sampler):
    found = looked_for(networks, 0.7, sampler=sampler, steps=[6], samples=32)
    runs = 1 + sum(a != b for a, b in zip(found.plan.assignment, found.plan.assignment[1:], strict=False))
    assert runs <= (3 if sampler == "dpmpp_2m" else 5)
    assert any("changes of member" in note for note in found.notes) == (sampler == "dpmpp_2m")


def test_seams_are_limited(priced):
    members = {"large": Normal("large"), "small": Normal("small", 0.4, (-3.0, 1.0))}
    for seams in (0, 1, 2):
        found = looked_for(members, 0.7, seams=seams)
        proposed = [p.plan for p in found.points if p.kind == "found"]
        assert all(sum(a != b for a, b in zip(p.assignment, p.assignment[1:], strict=False)) <= seams for p in proposed)


def test_a_seam_for_each_sample_at_equal_mean_cost(priced, networks):
    found = looked_for(networks, 0.6, per_sample=True, samples=64, steps=[8])
    (trial,) = found.per_sample
    seam = trial.fixed.plan.counts["small"]
    assert trial.mean_seam == pytest.approx(seam, abs=1.0)
    assert len(trial.tried) == 3
    assert trial.score.resampled == trial.fixed_score.resampled
    assert "for each sample" in found.verdict


def test_short_of_time_it_tries_less_and_says_so(priced):
    slow = {"large": Normal("large", takes=0.004), "small": Normal("small", 0.4, EARLY, takes=0.001)}
    with pytest.raises(HemstitchError, match="too short"):
        looked_for(slow, seconds=0.01)
    found = looked_for(slow, seconds=1.5)
    assert any("for want of time" in note for note in found.notes)
    assert found.results[0].found.judged is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.1}, "below the cheapest plan, small alone"),
        ({"budget": 1.2}, "at most 1"),
        ({"budget": float("nan")}, "at most 1"),
        ({"budget": []}, "at least one budget"),
        ({"budget": None}, "say how long"),
        ({"milliseconds": 3.0}, "say how long"),
        ({"seed": None}, "give seed="),
        ({"steps": 1}, "at least 2 steps"),
        ({"steps": [12, 2000]}, "2000 steps"),
        ({"samples": 8}, "samples of at least 16"),
        ({"batch": 1, "samples": 8}, "batch of 2"),
        ({"sampler": "magic"}, "sampler is one of"),
        ({"grid": "magic"}, "grid is one of"),
        ({"guidance": 2.0}, "unconditional"),
        ({"guidance_interval": "search"}, "only with guidance"),
        ({"guidance_interval": "here"}, "or 'search'"),
        ({"reference": "digits:all"}, "extractor="),
        ({"seconds": 0}, "above 0"),
        ({"seams": -1}, "at least 0"),
        ({"seams": 1.5}, "seams is a whole number"),
        ({"samples": 64.0}, "samples is a whole number"),
        ({"seed": 0.5}, "seed is a whole number"),
        ({"budget": [0.6, "half"]}, "a number above 0"),
        ({"steps": 12.5}, "steps is a whole number"),
    ],
)
def test_refusals(priced, options, message):
    members = {"large": Normal("large"), "small": Normal("small", 0.4)}
    with pytest.raises(HemstitchError, match=message):
        looked_for(members, **{"budget": 0.6} | options)


def test_members_that_cannot_be_traded(priced):
    with pytest.raises(HemstitchError, match="two members or more; got large"):
        looked_for({"large": Normal("large")})
    with pytest.raises(HemstitchError, match="channels"):
        looked_for({"large": Normal("large"), "small": Normal("small", spec=Spec(3, 4))})
    priced["small"] = 4.9
    with pytest.raises(HemstitchError, match="cost about the same"):
        looked_for({"large": Normal("large"), "small": Normal("small")})


def test_the_dearest_is_the_reference_whatever_it_is_called(priced):
    priced |= {"small": 9.0, "large": 1.0}
    found = looked_for({"small": Normal("a"), "large": Normal("b", 0.3, LATE)})
    assert found.points[-1].plan.counts == {"small": 12}
    assert found.evidence.effect[found.evidence.options.index(Option("small", False))].sum() == 0


def test_milliseconds_are_a_budget(priced):
    members = {"large": Normal("large"), "small": Normal("small", 0.4, LATE)}
    by_time = looked_for(members, None, milliseconds=0.6 * 5 * 12 / 8)
    assert by_time.plan == looked_for(members, 0.6).plan


def test_page_and_pictures(priced, networks):
    pytest.importorskip("matplotlib")
    found = looked_for(networks, 0.6, per_sample=True, samples=48, steps=[8])
    drawn = report.pictures(found)
    page = report.html(found, drawn)
    assert all(f">{point.plan}<" in page.replace("</td>", "<") for point in found.points)
    assert 'src="data:image/png' in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("<tr><td>") >= len(report.thinned(found.frontier)) > 1
    assert set(drawn) == {"frontier.png", "plans.png", "evidence.png"}
    assert "--plan p.json --sampler ddim" in report.command(found, ["a=b"], "p.json")


def test_choosing_and_judging_see_all_classes(priced, networks):
    """256 samples of 64 classes: any half has most of them, in no order."""
    many = api._labels(None, 1000, 512, 0)
    assert many.max() > 900  # not the first 512 classes alone
    labels = api._labels(None, 64, 256, 0)
    assert sorted(labels.tolist()) == sorted([*range(64)] * 4)
    assert len(labels[:128].unique()) > 40
    assert labels[:64].tolist() != [*range(64)]
    assert torch.equal(labels, api._labels(None, 64, 256, 0))


@pytest.mark.parametrize("seams", [0, 1])
def test_only_what_was_asked_for_is_found(priced, seams):
    """Interleaved is probed, and would be best: small is wrong for a moment in the middle only."""
    members = {"large": Normal("large"), "small": Normal("small", 0.4, (-2.0, 0.0))}
    found = looked_for(members, 0.65, seams=seams)
    runs = 1 + sum(a != b for a, b in zip(found.plan.assignment, found.plan.assignment[1:], strict=False))
    assert runs - 1 <= seams
    assert found.plan.steps == 12


def test_a_budget_that_allows_one_step_of_the_largest(priced):
    priced |= {"large": 20.0}
    found = looked_for({"large": Normal("large"), "small": Normal("small", 0.4, LATE)}, 0.1)
    assert found.results[0].fewer is None
    assert found.plan.steps == 12


def test_guidance_interval_of_a_flow_process(priced):
    """Its first step is pure noise, of log-SNR minus infinity."""
    flow = Process("flow", "flow")
    members = {name: NetDenoiser(net.net, flow, net.spec) for name, net in trained_like().items()}
    found = looked_for(members, 0.5, guidance=3.0, guidance_interval="search", steps=[6], samples=32)
    json.dumps(found.to_data(), allow_nan=False)
    for point in found.points:
        low, high = point.guidance_interval or (-1e9, 1e9)
        model = Stitched(members, point.plan)
        options = {"guidance": 3.0, "guidance_interval": (low, high), "seeds": [(0, 0)]}
        assert torch.isfinite(generate(model, [0], **options)).all()
    priced_at = {p.guidance_interval: p.ms_per_image for p in found.points if set(p.plan.counts) == {"large"}}
    assert len(priced_at) > 0


def trained_like():
    return {"small": network(0, 8), "large": network(1, 16)}


@pytest.mark.parametrize("marks", [(1, 1, 0, 0, 0, 0), (0, 1, 1, 0, 0, 0), (0, 0, 0, 0, 1, 1), (0, 0, 0, 0, 0, 0)])
@pytest.mark.parametrize("process", [PROCESS, Process("flow", "flow")])
def test_the_interval_told_guides_the_very_steps(priced, process, marks):
    from types import SimpleNamespace

    from hemstitch.stitch.search.found import interval_of

    members = {name: NetDenoiser(net.net, process, net.spec) for name, net in trained_like().items()}
    ground = Ground(members, torch.arange(4) % 3, api.sampler_of("ddim"), guidance=3.0, batch=4)
    candidate = Candidate(Plan.steps_each({"small": 3, "large": 3}), tuple(map(bool, marks)))
    interval = interval_of(SimpleNamespace(question=SimpleNamespace(ground=ground)), candidate)
    ((_, x),) = sampled(ground, [candidate], range(4))
    same = generate(Stitched(members, candidate.plan), [0, 1, 2, 0], guidance=3.0, guidance_interval=interval)
    assert torch.equal(x, same)


def test_an_interval_is_refused_where_a_step_asks_at_two_levels(priced, networks):
    for interval in ("search", (-2.0, 2.0)):
        with pytest.raises(HemstitchError, match="two noise levels"):
            looked_for(networks, 0.6, guidance=2.0, guidance_interval=interval, sampler="heun", steps=[6])


def test_costs_of_another_machine_or_damaged_are_measured_again(priced, tmp_path):
    members = {"large": Normal("large"), "small": Normal("small", 0.4, LATE)}
    found = looked_for(members, out=tmp_path)
    path = tmp_path / "costs.json"
    for spoiled in (path.read_text().replace("CPU of a test", "NVIDIA H100"), path.read_text()[:40]):
        path.write_text(spoiled)
        assert looked_for(members, out=tmp_path).costs.device == found.costs.device
    (tmp_path / "evidence.json").write_text("{}")
    (tmp_path / "spent.json").write_text("")
    assert comparable(looked_for(members, out=tmp_path)) == comparable(found)


def test_another_largest_member_is_another_search(priced, tmp_path):
    members = {"large": Normal("large"), "small": Normal("small", 0.4, LATE)}
    looked_for(members, out=tmp_path)
    priced |= {"small": 9.0}
    (tmp_path / "costs.json").unlink()
    with pytest.raises(HemstitchError, match="of other largest"):
        looked_for(members, out=tmp_path)


def test_a_refused_call_leaves_the_folder_free(priced, tmp_path):
    members = {"large": Normal("large"), "small": Normal("small", 0.4, LATE)}
    with pytest.raises(HemstitchError, match="below the cheapest"):
        looked_for(members, 0.05, out=tmp_path, seed=3)
    looked_for(members, out=tmp_path)


def test_a_finished_search_needs_no_time(priced, tmp_path):
    priced |= {"large": 5000.0, "small": 1000.0}  # as it is told: minutes, were there anything to sample
    members = {"large": Normal("large"), "small": Normal("small", 0.4, LATE)}
    whole = looked_for(members, out=tmp_path)
    again = looked_for(members, out=tmp_path, seconds=300)
    assert again.plan == whole.plan
    assert not any("want of time" in note for note in again.notes)


def test_evidence_cut_short_is_not_kept(priced, tmp_path):
    members = {"large": Normal("large"), "small": Normal("small", 0.4, EARLY)}

    def broken_off(turn):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        looked_for(members, out=tmp_path, trajectories=24, progress=broken_off)
    assert looked_for(members, out=tmp_path, trajectories=24).evidence.samples == 24


def test_a_member_that_breaks_down_is_named(priced):
    members = {"large": Normal("large"), "small": Normal("small", float("inf"), LATE)}
    with pytest.raises(HemstitchError, match=r"at step \d+ small or large predicts NaN or infinity"):
        looked_for(members)


def test_doubtful_costs_are_said_to_be(priced, monkeypatch):
    steady, waited = api.measure_costs, []

    def unsteady(members, *, seconds, **more):
        waited.append(seconds)
        costs = steady(members, **more)
        wide = tuple(Cost(c.member, c.guided, c.ms, c.ms, None, 0) for c in costs.entries)
        return Costs(costs.device, costs.dtype, costs.threads, costs.batch, costs.sampler, wide, costs.measured)

    monkeypatch.setattr(api, "measure_costs", unsteady)
    found = looked_for({"large": Normal("large"), "small": Normal("small", 0.4, LATE)})
    assert any("costs are doubtful" in note for note in found.notes)
    assert waited == sorted(waited)
    assert len(waited) == 2  # it tried again, for longer


def test_what_does_worse_on_new_samples_gives_way(priced, monkeypatch):
    """Chosen on samples that flatter it, the plan is held against what did better on those that chose nothing."""
    from hemstitch.evaluate.score import Score
    from hemstitch.stitch.search.searching import Search

    steady = Search.verdict_score

    def turned(self, candidate):
        score = steady(self, candidate)
        shift = 0.0 if candidate == self.answers[0].fraction else 5.0
        return Score(score.value + shift, score.draws + shift, resampled=score.resampled)

    monkeypatch.setattr(Search, "verdict_score", turned)
    found = looked_for({"large": Normal("large"), "small": Normal("small", 0.4, EARLY)})
    assert found.plan == found.results[0].fraction.plan
    assert "which did worse on these samples" in found.verdict
    assert "that no plan was proposed by" in found.verdict
    assert "expected to be better" not in found.verdict
    assert sum(point.judged is not None for point in found.points) == 4  # the rejected one's measure is told, too


def test_frechet_distances_are_those_of_evaluation():
    """Many samples of few features, and few of many."""
    import numpy as np

    from hemstitch.evaluate.frechet import frechet_distance
    from hemstitch.stitch.search.judge import Frechet, Pixels

    draw = np.random.default_rng(0)
    for N, F in ((200, 6), (12, 40)):
        rows = draw.normal(size=(N, F)) @ draw.normal(size=(F, F))
        reference = Moments.of(draw.normal(size=(300, F)))
        score = Frechet(Pixels(SPEC), FEATURES, reference, "r").score(torch.from_numpy(rows).float())
        expected = frechet_distance(Moments.of(rows.astype(np.float32)), reference)
        assert score.value == pytest.approx(expected, rel=1e-5)
        assert score.error > 0


def test_doubtful_costs_are_measured_again_next_time(priced, monkeypatch, tmp_path):
    steady, calls = api.measure_costs, []

    def measured(members, *, seconds, **more):
        calls.append(seconds)
        costs = steady(members, **more)
        wide = 1.0 if len(calls) <= 2 else 0.0
        entries = tuple(Cost(c.member, c.guided, c.ms, wide * c.ms, None, 0) for c in costs.entries)
        return Costs(costs.device, costs.dtype, costs.threads, costs.batch, costs.sampler, entries, costs.measured)

    monkeypatch.setattr(api, "measure_costs", measured)
    monkeypatch.setattr(api, "_same_machine", lambda *arguments: True)
    members = {"large": Normal("large"), "small": Normal("small", 0.4, LATE)}
    assert looked_for(members, out=tmp_path).notes
    assert not looked_for(members, out=tmp_path).notes
    assert not looked_for(members, out=tmp_path).notes
    assert len(calls) == 3
    calls.clear()
    looked_for(members, seconds=20)
    assert calls == [2.0]  # a tenth of the time, and not again


def test_an_interval_that_only_one_process_has_a_step_in(priced):
    members = trained_like()
    mixed = {
        "small": members["small"],
        "large": NetDenoiser(members["large"].net, Process("flow", "flow"), members["large"].spec),
    }
    log_snr = [sorted(m.process.log_snr(timesteps(m.process, 6)).tolist()) for m in mixed.values()]
    lone = next(v for v in log_snr[0] if min(abs(v - w) for w in log_snr[1]) > 0.2)
    found = looked_for(mixed, 0.9, guidance=3.0, guidance_interval=(lone - 0.1, lone + 0.1), steps=[6], samples=32)
    assert found.plan.steps == 6


def test_the_command_is_one_that_the_parser_takes(priced, networks):
    import shlex

    from hemstitch.cli.parser import parser_of

    found = looked_for(networks, 0.5, guidance=3.0, guidance_interval="search", steps=[6], samples=32)
    for point in found.points:
        told = type(found)(**{**vars(found), "results": (replace(found.results[0], found=point),)})
        words = shlex.split(report.command(told, ["small=a b", "large=c"], "my plan.json"))
        known = parser_of().parse_args(words[1:])
        assert known.plan.name == "my plan.json"
        assert known.members == ["small=a b", "large=c"]
        interval = point.guidance_interval
        assert known.guidance_interval == (None if interval is None else pytest.approx(interval, abs=1e-3))


def test_samples_that_break_down_are_told(priced, monkeypatch):
    from hemstitch.stitch.search import store

    original = store.sampled

    def broken(*arguments):
        for candidate, x in original(*arguments):
            yield candidate, x * float("nan") if "small" in candidate.plan.counts else x

    monkeypatch.setattr(store, "sampled", broken)
    with pytest.raises(HemstitchError, match=r"samples of .*small.* hold NaN or infinity"):
        looked_for({"large": Normal("large"), "small": Normal("small", 0.4, LATE)})
