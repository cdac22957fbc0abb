"""Costs: the arithmetic of a plan, the rounds under a clock that the test turns, the cache, the table."""

import json
import statistics
from itertools import pairwise

import pytest
import torch

from hemstitch import Denoiser, Guided, HemstitchError, NetConfig, NetDenoiser, Plan, Process, Spec, Stitched, build
from hemstitch.denoiser import Prediction
from hemstitch.description import describe
from hemstitch.samplers import DDIM
from hemstitch.stitch.search import timing
from hemstitch.stitch.search.cost import Cost, Costs, measure_costs

SPEC = Spec(1, 2, 3, null_label=True)


class Clock:
    """Seconds that pass only when a denoiser takes them."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Slow(Denoiser):
    """Takes `seconds` per row, and `cold` more if it did not take the turn before; all rows are noted."""

    process, spec, device = Process(), SPEC, torch.device("cpu")
    last = None

    def __init__(self, clock, seconds, cold=0.0, extra=lambda call: 0.0, process=None, spec=SPEC):
        self.clock, self.taken, self.cold, self.extra, self.calls = clock, seconds, cold, extra, []
        self.process, self.spec = process or self.process, spec
        self.identity = f"takes {seconds}"

    def __call__(self, x, t, cond=None, *, member=None):
        self.clock.now += self.taken * len(x) + self.extra(len(self.calls)) + (self.cold if Slow.last != self else 0)
        Slow.last = self
        self.calls.append((len(x), float(t[0])))
        return Prediction(x, torch.zeros_like(x))


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    return clock


def costs(**changes):
    entries = (
        Cost("small", False, 1.0, 0.1, 1_000_000, 2048),
        Cost("large", False, 10.0, 0.25, 20_000_000, 3 * 2**20),
        Cost("small", True, 1.75, 0.1, 2_000_000, 2048),
        Cost("large", True, 20.0, 0.25, None, 3 * 2**20),
    )
    return Costs(
        **{
            **{"device": "CPU of a test", "dtype": "float32", "threads": 2, "batch": 4, "sampler": "ddim"},
            **{"entries": entries, "measured": "2026-01-01 00:00 UTC"},
            **changes,
        }
    )


def test_a_plan_costs_the_sum_of_its_evaluations():
    plan = Plan.explicit(["small", "small", "large", "small", "large"])
    assert costs().of(plan, False, 1) == 1 + 1 + 10 + 1 + 10
    assert costs().of(plan, True, 1) == 3 * 1.75 + 2 * 20
    assert costs().of(plan, [False, True, True, False, False], 1) == 1 + 1.75 + 20 + 1 + 10


def test_heun_evaluates_twice_but_at_its_last_step():
    plan = Plan.explicit(["small", "large", "large"])
    assert costs().of(plan, False, 2) == 2 * 1 + 2 * 10 + 10
    assert costs().of(plan, [True, True, False], 2) == 2 * 1.75 + 2 * 20 + 10


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: costs().ms("middle"), "middle without guidance was not measured; measured were small without"),
        (
            lambda: costs(entries=costs().entries[:2]).ms("small", True),
            "small with guidance was not.*True among guided=",
        ),
        (lambda: costs().of(Plan.explicit(["small"]), [True, False], 1), "2 for a plan of 1 steps"),
        (lambda: costs().of(Plan.explicit(["small"]), True, 0), "at least 1 evaluation"),
        (lambda: costs(entries=()), "at least one member"),
        (lambda: costs(entries=costs().entries[:1] * 2), "repeat one"),
    ],
)
def test_what_was_not_measured_is_not_told(ask, said):
    with pytest.raises(HemstitchError, match=said):
        ask()


def test_costs_survive_json():
    assert Costs.from_data(json.loads(json.dumps(costs().to_data()))) == costs()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"speed": 1}, "keys device, dtype.*speed"),
        ({"batch": 0}, "batch of costs is a whole number above 0, not 0"),
        ({"threads": True}, "threads"),
        ({"device": 3}, "device of costs is a text"),
        ({"entries": {}}, "entries of costs is a list"),
        ({"entries": [3]}, "a cost has the keys member, guided"),
    ],
)
def test_foreign_costs_are_refused(change, said):
    with pytest.raises(HemstitchError, match=said):
        Costs.from_data({**costs().to_data(), **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ms": 0}, "ms of costs is above 0"),
        ({"ms": float("nan")}, "ms of costs"),
        ({"ms": "1"}, "ms of costs"),
        ({"spread": -1.0}, "spread of costs"),
        ({"guided": 1}, "guided of costs is true or false"),
        ({"member": ""}, "member of costs"),
        ({"macs": 1.5}, "macs of costs"),
        ({"memory": None}, "memory of costs"),
        ({"flops": 1}, "a cost has the keys"),
    ],
)
def test_foreign_entries_are_refused(change, said):
    data = costs().to_data()
    data["entries"][1] |= change
    with pytest.raises(HemstitchError, match=said):
        Costs.from_data(data)


def test_the_table_shows_time_beside_multiply_adds():
    head, titles, *rows, note = str(costs()).splitlines()
    assert head == "one evaluation of 4 samples, ddim, float32, CPU of a test, 2 threads, 2026-01-01 00:00 UTC"
    assert titles.split() == (
        ["member", "guided", "ms", "±", "of", "the", "dearest", "multiply-adds", "of", "the", "most", "memory"]
    )
    assert rows[0].split() == ["small", "no", "1", "0.1", "5.0", "%", "1", "M", "5.0", "%", "2", "KiB"]
    assert rows[1].split() == ["large", "no", "10", "0.25", "50.0", "%", "20", "M", "100.0", "%", "3", "MiB"]
    assert rows[3].split() == ["large", "yes", "20", "0.25", "100.0", "%", "not", "counted", "3", "MiB"]
    assert len({len(line) for line in (titles, *rows)}) == 1
    assert note.endswith("Memory: parameters")
    on_gpu = str(costs(device="NVIDIA of a test"))
    assert "thread" not in on_gpu
    assert on_gpu.endswith("the peak of an evaluation")


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7])
def test_in_a_square_each_follows_each_other_equally_often(n):
    rounds = [timing.order(n, turn) for turn in range(n if n % 2 == 0 else 2 * n)]
    assert all(sorted(row) == list(range(n)) for row in rounds)
    follows = [pair for row in rounds for pair in pairwise(row)]
    times = {follows.count((i, j)) for i in range(n) for j in range(n) if i != j}
    assert times == ({1} if n % 2 == 0 else {2} if n > 1 else set())
    assert n == 1 or rounds[0] != rounds[1]


def test_the_relative_error_is_that_of_the_median():
    """Against the spread of medians over draws of a normal variable, within what 4000 draws leave."""
    random = torch.Generator().manual_seed(0)
    draws = (10 + torch.randn(4000, 101, generator=random, dtype=torch.float64)).tolist()
    actual = statistics.stdev(statistics.median(row) for row in draws) / 10
    told = statistics.mean(timing.relative_error(row) for row in draws)
    assert told == pytest.approx(actual, rel=0.05)
    assert timing.relative_error([1.0, 2.0]) == float("inf")
    assert timing.relative_error([0.0] * 9) == 0


def test_medians_of_one_evaluation(clock):
    members = {"small": Slow(clock, 0.25), "large": Slow(clock, 1.0)}
    measured = measure_costs(members, batch=2, guided=[False, True])
    assert [(c.member, c.guided, c.ms, c.spread) for c in measured.entries] == [
        ("small", False, 500.0, 0.0),
        ("large", False, 2000.0, 0.0),
        ("small", True, 1000.0, 0.0),
        ("large", True, 4000.0, 0.0),
    ]
    assert (measured.batch, measured.sampler, measured.dtype) == (2, "ddim", "float32")
    assert (measured.entries[0].macs, measured.entries[0].memory) == (None, 0)
    # without noise the fewest rounds are enough, though far more than 5 seconds of the clock went by
    assert len(members["large"].calls) == 2 * (timing.WARM_UP + timing.FEWEST)
    assert {rows for rows, _ in members["large"].calls} == {2, 4}


def test_a_quick_member_is_timed_after_itself(clock):
    """What its caches cost it after another member's turn is not an evaluation's own."""
    members = {"small": Slow(clock, 0.01, cold=0.005), "large": Slow(clock, 1.0, cold=0.005)}
    measured = measure_costs(members, batch=1, guided=[False])
    assert measured.ms("small") == pytest.approx(10)
    assert measured.ms("large") == pytest.approx(1005)
    assert len(members["small"].calls) == timing.WARM_UP + 2 * timing.FEWEST


def test_a_slow_spell_leaves_the_medians_alone(clock):
    def spell(call):
        return 5.0 if 4 <= call < 7 else 0.0

    members = {"small": Slow(clock, 0.3, extra=spell), "large": Slow(clock, 1.0, extra=spell)}
    measured = measure_costs(members, batch=1, guided=[False])
    assert measured.ms("small") / measured.ms("large") == pytest.approx(0.3)


def test_noise_asks_for_more_rounds_until_the_time_is_over(clock):
    def noisy(call):
        return 0.5 * (call % 3)

    for seconds, rounds in (
        (0, timing.FEWEST),
        (40, 25),
    ):  # 4.5 s every 3 evaluations, of which 2 are warm-up: 27 take 40.5 s
        member, seen = Slow(clock, 1.0, extra=noisy), []
        measure_costs({"only": member}, batch=1, guided=[False], seconds=seconds, progress=seen.append)
        assert len(seen) == rounds == seen[-1].done
        assert seen[-1].error > timing.PRECISION
        assert seen[-1].seconds >= seconds
        assert rounds == timing.FEWEST or seen[-2].seconds < seconds


def test_a_known_median_ends_it_before_the_time(clock):
    member, seen = Slow(clock, 1.0, extra=lambda call: 0.06 * (call % 3)), []
    measure_costs({"only": member}, batch=1, guided=[False], seconds=500, progress=seen.append)
    assert timing.FEWEST < len(seen) < 100
    assert seen[-1].error <= timing.PRECISION < seen[-2].error


@pytest.mark.parametrize(("sampler", "levels"), [("ddim", 4), ("heun", 5)])
def test_several_noise_levels_are_asked_at(clock, sampler, levels):
    """Heun's second evaluation of a step is at the next level; the step to the clean level is never taken."""
    member = Slow(clock, 1.0)
    measure_costs({"only": member}, batch=1, guided=[False], sampler=sampler)
    assert len({t for _, t in member.calls}) == levels


@pytest.mark.parametrize("process", [Process("flow", "flow"), Process(timesteps=2)])
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m", DDIM(eta=0.5)])
def test_any_process_and_sampler_can_be_timed(clock, process, sampler):
    member = Slow(clock, 1.0, process=process, spec=Spec(1, 2))
    measured = measure_costs({"only": member}, batch=3, guided=[False], sampler=sampler)
    assert measured.ms("only") == 3000
    assert measured.sampler == (sampler if isinstance(sampler, str) else "DDIM(eta=0.5)")


def test_what_was_measured_is_not_measured_again(clock, tmp_path):
    def measure(batch=2, guided=(False,), seconds=0.3, sampler="ddim", name="a", threads=1, channels=None):
        torch.set_num_threads(threads)
        member = Slow(clock, seconds)
        costs = measure_costs(
            {name: member}, batch=batch, guided=guided, sampler=sampler, guidance_channels=channels, cache=tmp_path
        )
        return costs, bool(member.calls)

    first, measured = measure()
    assert measured
    assert measure() == (first, False)
    for other in (
        {"batch": 3},
        {"guided": (True,)},
        {"seconds": 0.4},
        {"sampler": "heun"},
        {"name": "b"},
        {"threads": 2},
        {"channels": 1},
    ):
        assert measure(**other)[1], other
        assert not measure(**other)[1], other
    assert measure() == (first, False)
    assert len(list(tmp_path.iterdir())) == 8


def damage_text(path):
    path.write_text(path.read_text()[:-20])


def damage_bytes(path):
    path.write_bytes(b"\xff\x00")


def damage_data(*where, to):
    def damage(path):
        data = json.loads(path.read_text())
        inner = data
        for key in where[:-1]:
            inner = inner[key]
        inner[where[-1]] = to
        path.write_text(json.dumps(data))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        damage_text,
        damage_bytes,
        damage_data("key", "members", "a", to="another network"),
        damage_data("key", to=None),
        damage_data("costs", to=[]),
        damage_data("costs", "batch", to=7),
        damage_data("costs", "device", to="CPU of another machine"),
        damage_data("costs", "entries", 0, "ms", to=-1.0),
        damage_data("costs", "entries", 0, "ms", to=float("nan")),
        damage_data("costs", "entries", 0, "member", to="b"),
        damage_data("costs", "entries", to=[]),
    ],
)
def test_a_damaged_or_foreign_file_is_measured_again(clock, tmp_path, damage):
    first = measure_costs({"a": Slow(clock, 0.25)}, batch=2, guided=[False], cache=tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path)
    member = Slow(clock, 0.25)
    again = measure_costs({"a": member}, batch=2, guided=[False], cache=tmp_path)
    assert member.calls
    assert again.entries == first.entries
    member.calls.clear()
    assert measure_costs({"a": member}, batch=2, guided=[False], cache=tmp_path) == again
    assert not member.calls


def test_a_cache_that_cannot_be_written_is_told_before_measuring(clock, tmp_path):
    (tmp_path / "file").touch()
    member = Slow(clock, 0.3)
    with pytest.raises(HemstitchError, match=r"could not be written.*choose another folder"):
        measure_costs({"a": member}, batch=1, guided=[False], cache=tmp_path / "file")
    assert not member.calls


def network(width, **config):
    torch.manual_seed(width)
    shape = {"input_size": 4, "channels": 2, "patch": 2, "depth": 1, "heads": 2, "num_classes": 3}
    net = build(NetConfig("dit", width=width, null_label=True, learned_variance=False, **shape, **config))
    return NetDenoiser(net.eval(), Process(), Spec(2, 4, 3, null_label=True))


def test_networks_are_timed_counted_and_weighed():
    members = {"small": network(16), "large": network(64)}
    measured = measure_costs(members, batch=2, guided=[True, False, True], seconds=0.0)
    assert [(c.member, c.guided) for c in measured.entries] == [
        *(("small", False), ("large", False)),
        *(("small", True), ("large", True)),
    ]
    for cost in measured.entries:
        member = members[cost.member]
        assert cost.macs == describe(member).macs * 2 * (2 if cost.guided else 1)
        kept = [*member.net.parameters(), *member.net.buffers()]
        assert cost.memory == sum(4 * tensor.numel() for tensor in kept)
        assert cost.ms > 0
    assert measured.device.startswith("CPU")
    assert measured.threads == 1
    assert measured.measured.endswith("UTC")


def test_the_precision_is_told():
    member = network(16).to(dtype=torch.bfloat16)
    assert measure_costs({"a": member}, batch=1, guided=[False], seconds=0).dtype == "bfloat16"
    with torch.autocast("cpu", torch.bfloat16):
        measured = measure_costs({"a": network(16)}, batch=1, guided=[False], seconds=0)
    assert measured.dtype == "float32 under autocast to bfloat16"


@pytest.mark.parametrize(
    ("members", "options", "said"),
    [
        ({}, {}, "at least one member"),
        ({"a": network(16)}, {"guided": []}, "at least one mode"),
        ({"a": network(16)}, {"batch": 0}, "at least 1 sample"),
        ({"a": network(16)}, {"guided": [True], "guidance": 1}, "guidance 1 asks the network once"),
        ({"a": network(16)}, {"seconds": float("nan")}, "how long to measure"),
        ({"a": network(16)}, {"seconds": -1}, "how long to measure"),
        ({"a": network(16)}, {"sampler": "guess"}, "sampler is one of"),
        ({"a": network(16)}, {"guided": [True], "guidance_channels": 9}, "guidance_channels lies in"),
        ({"a": Guided(network(16), 2.0)}, {}, "a is guided already"),
        ({"a": Stitched({"b": network(16)}, Plan.explicit(["b"]))}, {}, "a is a stitch.*measure its members"),
        ({"a": Slow(Clock(), 1.0, spec=Spec(1, 2))}, {"guided": [True]}, "unconditional"),
    ],
)
def test_what_cannot_be_measured_is_refused(members, options, said):
    with pytest.raises(HemstitchError, match=said):
        measure_costs(members, **{"batch": 1, "guided": [False], **options})


def test_members_on_two_devices_are_refused():
    there = Slow(Clock(), 1.0)
    there.device = torch.device("meta")
    with pytest.raises(HemstitchError, match=r"different devices \(cpu, meta\): move them to one"):
        measure_costs({"a": network(16), "b": there}, batch=1, guided=[False])
