"""B. T-Stitch on U-Nets: two of diffusers' `UNet2DModel`s on Fashion-MNIST, stitched by the bridge in a DDIMPipeline.

The paper's U-Nets are those of a latent diffusion model, of 25M and 394M parameters, class-conditional, under guidance
(its figures: DDIM 100). Here the pipeline is diffusers' plainest, which knows no labels, so the class accuracy of its
samples tells nothing and is left out; the noise schedule and everything else of its scheduler is the default. Every
plan is sampled from the same noise, a generator for each image, so that plans compare as pairs.

Shape suffixes: B batch, N samples, F features.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hemstitch.bridge import replan, stitch
from hemstitch.data import Dataset, batch_at
from hemstitch.errors import HemstitchError
from hemstitch.evaluate.score import Score
from hemstitch.files import read_json_file, save_tensors, write_atomic, write_text
from hemstitch.marked import sha256, step_of
from hemstitch.run import Run
from hemstitch.train import checkpoint
from hemstitch.train.checkpoint import Content

from .fields import BATCH, Field, classes, fashion, of, told
from .stitching import TENTHS, beside, speed
from .work import Ledger, Result, Stopped, Task

STEPS = 50
NUM, FIRST_SEED = 16 * BATCH, 5_000_000  # far from the seeds of training, which are its steps
KEPT = "model_index.json"  # of a pipeline, what is written last
AS_LONG_AS = ("0.2", "0.4", "0.6", "0.8")  # fractions that fewer steps of the large U-Net are held against
FIGURES = ("distance", "precision", "recall")


@dataclass(frozen=True)
class Member:
    """A U-Net and its training. widths: of its levels, each half as large as the one before. layers: residual blocks
    of a level on the way down, one more on the way up."""

    widths: tuple[int, ...]
    layers: int
    steps: int
    batch: int = 32
    rate: float = 1e-3
    ema: float = 0.998
    save_every: int = 500


MEMBERS = {"small": Member((8, 8, 8), layers=0, steps=10_000), "large": Member((16, 48, 64), layers=1, steps=5_000)}


@dataclass(frozen=True)
class Way:
    """How many solver steps, and how many of them, the first, are the small U-Net's."""

    steps: int
    small: int = 0


def fractions(steps: int = STEPS) -> dict[str, Way]:
    return {f"{r:g}": Way(steps, round(r * steps)) for r in TENTHS}


def tasks(folder: Path) -> list[Task]:
    field, pair, kept = fashion(folder), folder / "runs" / "unets", folder / "samples" / "unets"
    trained = tuple(f"unets/trained/{name}" for name in MEMBERS)
    judged, ledger = ("switch/field", *trained, "unets/time"), Ledger(folder / "results")
    of = (field.settings, MEMBERS, fractions(), NUM, FIRST_SEED)

    def shorter() -> dict[str, Way]:
        return as_long(ledger["unets/time"]["seconds_per_image"])

    def fewer_seconds() -> Result:
        return seconds(pair, {"0": Way(STEPS)} | shorter(), kept)

    found = [
        *(
            Task(f"unets/trained/{name}", partial(train, field, m, pair / name), of=m, keeps=pair / name / KEPT)
            for name, m in MEMBERS.items()
        ),
        Task("unets/time", partial(seconds, pair, fractions(), kept), trained, of),
        Task("unets/fractions", partial(table, field, pair, fractions(), NUM, kept), judged, of),
        Task("unets/fewer steps", lambda: table(field, pair, shorter(), NUM, kept), (*judged, "unets/fractions"), of),
        Task("unets/time of fewer steps", fewer_seconds, ("unets/time",), of),
    ]
    return [replace(task, dtype="float32") for task in found]


# Training


def unet(member: Member, data: Dataset) -> UNet2DModel:
    """Freshly drawn; of convolutions but for the attention in its middle."""
    torch.manual_seed(0)
    levels = len(member.widths)
    return UNet2DModel(
        sample_size=data.size,
        in_channels=data.channels,
        out_channels=data.channels,
        layers_per_block=member.layers,
        block_out_channels=member.widths,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        norm_num_groups=4,
    )


@dataclass
class Trainee:
    """What training changes. seconds: spent in its steps so far, in all sittings."""

    member: Member
    net: UNet2DModel
    average: UNet2DModel
    adam: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, member: Member, data: Dataset) -> Trainee:
        net = unet(member, data)
        adam = torch.optim.AdamW(net.parameters(), member.rate, weight_decay=0.0)
        return cls(member, net, deepcopy(net).requires_grad_(False), adam)

    def save(self, folder: Path) -> None:
        held = self.adam.state_dict()["state"]
        moments = {f"{i}/{key}": value for i, values in held.items() for key, value in values.items()}
        tensors = {"net": self.net.state_dict(), "average": self.average.state_dict(), "adam": moments}
        contents = {name: Content(of) for name, of in tensors.items()}
        state = {"seconds": self.seconds, "member": asdict(self.member)}
        checkpoint.save(Run(folder).checkpoints, self.step, contents, state, keep=1)

    def restore(self, folder: Path) -> None:
        """The newest whole checkpoint of the folder, if there is one. HemstitchError if it is of another member."""
        newest = Run(folder).newest()
        if newest is None:
            return
        state = read_json_file(newest / "state.json")
        if state["member"] != json.loads(json.dumps(asdict(self.member))):
            raise HemstitchError(f"{folder} holds another network, {state['member']}. Remove it")
        self.net.load_state_dict(load_file(newest / "net.safetensors"))
        self.average.load_state_dict(load_file(newest / "average.safetensors"))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in load_file(newest / "adam.safetensors").items():
            index, _, key = name.partition("/")
            moments.setdefault(int(index), {})[key] = value
        self.adam.load_state_dict({"state": moments, "param_groups": self.adam.state_dict()["param_groups"]})
        self.step, self.seconds = step_of(newest), state["seconds"]


def train(field: Field, member: Member, folder: Path) -> Result:
    """Train, or go on, to the last step, and write the averaged U-Net as a pipeline: a result of a task. Raises
    `Stopped` where it was asked to stop."""
    data, scheduler = field.data(), DDPMScheduler()
    trainee = Trainee.of(member, data)
    trainee.restore(folder)
    with asked_to_stop() as came:
        while trainee.step < member.steps:
            began = time.perf_counter()
            learn(trainee, data, scheduler)
            trainee.seconds += time.perf_counter() - began
            if came or trainee.step % member.save_every == 0 or trainee.step == member.steps:
                trainee.save(folder)
            if came:
                raise Stopped
    average = trainee.average.eval()
    DDPMPipeline(average, scheduler).save_pretrained(folder)
    return {
        "member": asdict(member),
        "parameters": sum(p.numel() for p in average.parameters()),
        "multiply_adds": multiply_adds(average, data),
        "milliseconds_a_step": 1000 * trainee.seconds / trainee.step,
        "held_out_error": told(held_out_error(average, field.test(), scheduler)),
    }


def learn(trainee: Trainee, data: Dataset, scheduler: DDPMScheduler) -> None:
    """One step: mean squared error of the noise, at uniform timesteps. What is drawn is a function of the step."""
    generator = torch.Generator().manual_seed(trainee.step)
    x0 = data.images(batch_at(len(data), trainee.member.batch, 0, trainee.step))
    noise = torch.randn(x0.shape, generator=generator)
    t_B = torch.randint(scheduler.config.num_train_timesteps, (len(x0),), generator=generator)
    loss = nn.functional.mse_loss(trainee.net(scheduler.add_noise(x0, noise, t_B), t_B).sample, noise)
    trainee.adam.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(trainee.net.parameters(), 1.0)
    trainee.adam.step()
    with torch.no_grad():
        averages, weights = list(trainee.average.parameters()), list(trainee.net.parameters())
        torch._foreach_lerp_(averages, weights, 1 - trainee.member.ema)
    trainee.step += 1


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """The signals of Ctrl-C and SIGTERM that came, instead of what they do."""
    came: list[int] = []
    asked = (signal.SIGINT, signal.SIGTERM)
    before = {one: signal.signal(one, lambda number, _: came.append(number)) for one in asked}
    try:
        yield came
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@torch.no_grad()
def held_out_error(net: UNet2DModel, data: Dataset, scheduler: DDPMScheduler, most: int = 2_000) -> Score:
    """Mean squared error of the noise of images that were not learned, their timesteps evenly over all."""
    count, T = min(most, len(data)), scheduler.config.num_train_timesteps
    noise = torch.randn((count, data.channels, data.size, data.size), generator=torch.Generator().manual_seed(0))
    errors = []
    for index in torch.arange(count).split(BATCH):
        t_B = index * T // count
        foreseen = net(scheduler.add_noise(data.images(index), noise[index], t_B), t_B).sample
        errors.append((foreseen - noise[index]).square().mean((1, 2, 3)))
    values = torch.cat(errors).double().numpy()
    return Score(float(values.mean()), values, count**-0.5, resampled=count)


@torch.no_grad()
def multiply_adds(net: UNet2DModel, data: Dataset) -> int:
    """Of one call for one image."""
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, data.channels, data.size, data.size), 0)
    return counter.get_total_flops() // 2


# Sampling


def opened(pair: Path) -> DDIMPipeline:
    """The large U-Net's pipeline, with the small one stitched in."""
    pipe = DDIMPipeline.from_pretrained(pair / "large")
    pipe.set_progress_bar_config(disable=True)
    return stitch(pipe, UNet2DModel.from_pretrained(pair / "small", subfolder="unet"), fraction=0)


def weights(pair: Path) -> list[str]:
    """Hashes of both, by which samples of theirs are told from those of others."""
    return [sha256(pair / name / "unet" / "diffusion_pytorch_model.safetensors") for name in MEMBERS]


def draw(pipe: DDIMPipeline, way: Way, seeds: range) -> Tensor:
    """(B, C, S, S) samples in -1..1, one for each seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with replan(pipe, fraction=way.small / way.steps):
        drawn = pipe(len(seeds), generators, num_inference_steps=way.steps, output_type="pt").images
    return drawn * 2 - 1


def sampled_rows(field: Field, pipe: DDIMPipeline, way: Way, num: int, kept: Path) -> Tensor:
    """(N, F) features of the first samples; kept as they are made, so that what was stopped goes on from there."""
    parts = []
    for start in range(0, num, BATCH):
        seeds = range(FIRST_SEED + start, FIRST_SEED + min(num, start + BATCH))
        path = kept / f"{way.small} of {way.steps}" / f"{start:06d}.safetensors"
        if not path.exists():
            tensors = {"rows": field.rows(draw(pipe, way, seeds))}
            write_atomic(path, lambda aside, tensors=tensors: save_tensors(aside, tensors))
        parts.append(load_file(path)["rows"][: len(seeds)])
    return torch.cat(parts)


def table(field: Field, pair: Path, ways: Mapping[str, Way], num: int, kept: Path) -> Result:
    """Every way judged, and held against all steps of the large U-Net alone; one that takes as long as a fraction, also
    against that."""
    pipe, kept = opened(pair), of(kept, weights(pair), field.judge.hash, BATCH)

    @cache
    def judged(way: Way) -> dict[str, Score]:
        return field.scores(sampled_rows(field, pipe, way, num, kept), classes(num))

    plans: Result = {}
    for key, way in ways.items():
        scores = judged(way)
        plans[key] = {"steps": way.steps, "small": way.small} | {figure: told(scores[figure]) for figure in FIGURES}
        plans[key]["to_largest"] = beside(scores["distance"], judged(Way(STEPS))["distance"])
        if key not in fractions():
            fraction = judged(fractions()[fraction_of(key)])["distance"]
            plans[key]["fraction_to_it"] = beside(fraction, scores["distance"])
    return {"samples": num, "plans": plans}


def seconds(pair: Path, ways: Mapping[str, Way], kept: Path, rounds: int = 7, batch: int = 25) -> Result:
    """Seconds per image of whole calls of the pipeline by round, the ways in turns, so that a slow spell of the machine
    falls on all. Rounds are kept as they are done."""
    pipe, path = opened(pair), of(kept, weights(pair), ways, batch) / "seconds.json"
    taken: list[dict[str, float]] = read_json_file(path)["rounds"] if path.exists() else []
    draw(pipe, Way(2, 1), range(batch))  # warm-up, of both
    while len(taken) < rounds:
        this: dict[str, float] = {}
        for key, way in ways.items():
            began = time.perf_counter()
            draw(pipe, way, range(batch))
            this[key] = (time.perf_counter() - began) / batch
        taken.append(this)
        write_text(path, json.dumps({"rounds": taken}))
    return {"batch": batch, "seconds_per_image": {key: [one[key] for one in taken] for key in ways}}


def as_long(times: Mapping[str, list[float]]) -> dict[str, Way]:
    """The large U-Net alone at the fewest steps that take at least the time of some fractions."""
    found = {}
    for r in AS_LONG_AS:
        share = median(mine / large for mine, large in zip(times[r], times["0"], strict=True))
        count = max(1, min(STEPS - 1, math.ceil(share * STEPS)))
        found[f"{count} steps, as long as {r}"] = Way(count)
    return found


def fraction_of(key: str) -> str:
    """Of a key of `as_long`."""
    return key.rpartition(" ")[2]


# What came out


def between(values: list[float]) -> dict[str, float]:
    """The median; of seven rounds the least and the most are a 98 % interval of it, whatever the distribution."""
    return {"median": median(values), "least": min(values), "most": max(values)}


def timed(times: Mapping[str, list[float]]) -> dict[str, dict[str, Any]]:
    """By plan, milliseconds per image, and how many times as fast as the large U-Net alone in the same round."""
    return {
        key: {
            "milliseconds_per_image": between([1000 * one for one in mine]),
            "times_as_fast": between([large / one for one, large in zip(mine, times["0"], strict=True)]),
        }
        for key, mine in times.items()
    }


def summary(ledger: Ledger) -> dict[str, Any]:
    """The members, the fraction table, and fewer steps of the large member beside the fractions that take as long."""
    found: dict[str, Any] = {"sampling": {"sampler": "ddim", "steps": STEPS, "first_seed": FIRST_SEED, "samples": NUM}}
    found |= {f"trained/{name}": ledger[f"unets/trained/{name}"] for name in MEMBERS}
    for name, times in (("fractions", "time"), ("fewer steps", "time of fewer steps")):
        found |= {name: ledger[f"unets/{name}"], times: ledger[f"unets/{times}"]}
        measured = timed(found[times]["seconds_per_image"])
        for key, plan in found[name]["plans"].items():
            plan |= measured[key]
    fewer = timed(found["time of fewer steps"]["seconds_per_image"])
    found["time"]["speed"] = speed(found["time"]["seconds_per_image"], STEPS) | {
        key: {"times": of["times_as_fast"]["median"]} for key, of in fewer.items() if key != "0"
    }
    found["fractions to fewer steps"] = {
        fraction_of(key): {"fewer": key} | plan["fraction_to_it"] for key, plan in found["fewer steps"]["plans"].items()
    }
    return found
