"""D. Ablations of Switch-DiT on digits: variants that differ from a base in one thing each, seed by seed.

The base is Switch-DiT as published (M = 3, k = 2, gates not renormalised, prior loss of weight 1, constant weighting)
with DiT's linear schedule, but small, and it predicts v: in so few steps a DiT that predicts eps hardly learns its
labels. DiT and DTR of the same width and depth stand beside it.

What the library does not offer are subclasses of its Switch-DiT here, which take its place in `MODELS` while a variant
is trained or loaded (`Variant.installed`). Their files call themselves Switch-DiT, whose weights they are.

Shape suffixes: B batch, L tokens, T train timesteps, Y labels, null too, D width, N blocks, M experts, U = N·M.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from hemstitch.analyze.experts import SHARED, expert_use
from hemstitch.models import MODELS, SwitchDiT, build
from hemstitch.models.layers import unpatchify
from hemstitch.models.switch_dit import top_k_mask
from hemstitch.recipe import Recipe

from .families import FIGURES, SEEDS, gap, interval
from .fields import Field, digits, judged, told
from .networks import at, held, marked, train, transformer
from .work import Ledger, Result, Task

STEPS = 1200
MARKS = (STEPS // 2, STEPS)  # where along training samples are judged
LOOK: dict[str, Any] = {"sampler": "ddim", "steps": 25}
NUM, SAMPLING_SEED = 5_000, 1000


class Renormalised(SwitchDiT):
    """The gates of the k selected experts divided by their sum, so that they sum to one."""

    def routing(self, e_BD: Tensor, t_B: Tensor) -> Sequence[Tensor]:
        return [gate_BM / gate_BM.sum(1, keepdim=True) for gate_BM in super().routing(e_BD, t_B)]


class Skipless(SwitchDiT):
    """out = block(routed): without z − routed, what the router takes away is lost."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for block in self.blocks:  # which adds z − routed when it is given z, its third argument
            block.register_forward_pre_hook(lambda block, given: given[:2])


class LabelGates(SwitchDiT):
    """Gates on t + label, the conditioning of the blocks, where the published ones are on t.

    The prior says which experts a timestep should use, whatever the label, so its loss is on the mean of the gates over
    labels: a label may go its own way, all of them together follow the prior. (On each label's own gate it would pull
    the labels together, and so undo what is being tried; on the gate of no label at all it would shape one that no
    sample has.) All labels count alike, the null label among them: with a tenth of ten labels dropped, so they do in
    training, nearly.
    """

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """As `DiT.forward`, but for what `routing` is told."""
        with torch.autocast(x.device.type, enabled=False):
            e_BD = self.t_embedder(t)
        c_BD = e_BD + self.y_embedder(cast(Tensor, y))
        z_BLD = self.x_embedder(x.to(self.pos_embed.dtype)) + self.pos_embed
        for block, router, gate_BM in zip(self.blocks, self.routers, self.routing(c_BD, t), strict=True):
            z_BLD = block(router(z_BLD, gate_BM), c_BD, z_BLD)
        return unpatchify(self.final_layer(z_BLD, c_BD), self.config.patch, self.config.out_channels)

    def gates_by_label(self, t_B: Tensor) -> Tensor:
        """(B, Y, N, M) probabilities of every block's gate at times t, for each label, before the top-k."""
        c_BYD = self.t_embedder(t_B)[:, None] + self.y_embedder.embedding_table.weight
        return self._probabilities(c_BYD.flatten(0, 1)).view(*c_BYD.shape[:2], self.config.depth, -1)

    def gate_probabilities(self, t_B: Tensor) -> Tensor:
        """(B, N, M) the mean over labels: what the prior loss and its matching see."""
        return self.gates_by_label(t_B).mean(1)


def base(where: Field) -> Recipe:
    """Prediction, batch and rate were chosen for the DiT of this size, by its own distance."""
    return transformer(
        where,
        "ablations-base",
        "switch_dit",
        width=48,
        patch=2,
        schedule="linear",
        prediction="v",
        batch=32,
        learning_rate=6e-3,
        ema=0.995,
        steps=STEPS,
        checkpoint_every=STEPS // 2,
    )


@dataclass(frozen=True)
class Variant:
    """What is trained in place of the base.

    differs: from the base in what, for a reader. net, process, train: fields of the recipe that are other than the
    base's. network: what stands for Switch-DiT.
    """

    name: str
    differs: str
    net: Mapping[str, Any] = field(default_factory=dict)
    process: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    network: type[SwitchDiT] = SwitchDiT

    @property
    def routed(self) -> bool:
        """Whether it is a Switch-DiT of some kind."""
        return "family" not in self.net

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The network that it is about, for whatever is built or loaded meanwhile in this process."""
        before = MODELS["switch_dit"]
        MODELS["switch_dit"] = self.network
        try:
            yield
        finally:
            MODELS["switch_dit"] = before

    def recipe(self, base: Recipe, seed: int) -> Recipe:
        return replace(
            base,
            name=f"ablations-{self.name}-{seed}",
            net=replace(base.net, **self.net),
            process=replace(base.process, **self.process),
            train=replace(base.train, seed=seed, **self.train),
        )


BASE = Variant("base", "nothing")
VARIANTS = (
    BASE,
    Variant("dit", "no routing (DiT)", {"family": "dit"}),
    Variant("dtr", "channel masks by timestep (DTR)", {"family": "dtr"}),
    Variant("prior-0", "no prior loss", train={"prior_weight": 0.0}),
    Variant("prior-0.1", "prior loss of weight 0.1", train={"prior_weight": 0.1}),
    Variant("prior-10", "prior loss of weight 10", train={"prior_weight": 10.0}),
    Variant("experts-2-1", "M = 2, k = 1", {"experts": 2, "top_k": 1}),
    Variant("experts-3-1", "M = 3, k = 1", {"top_k": 1}),
    Variant("experts-3-3", "M = 3, k = 3", {"top_k": 3}),
    Variant("experts-4-2", "M = 4, k = 2", {"experts": 4}),
    Variant("experts-8-2", "M = 8, k = 2", {"experts": 8}),
    Variant("experts-8-4", "M = 8, k = 4", {"experts": 8, "top_k": 4}),
    Variant("renormalised", "gates of the top k sum to one", network=Renormalised),
    Variant("skipless", "z − routed is not added", network=Skipless),
    Variant("label-gates", "gates on t + label", network=LabelGates),
    Variant("eps", "eps prediction, as published", process={"prediction": "eps"}),
    Variant("cosine", "cosine schedule", process={"schedule": "cosine"}),
    Variant("min-snr", "Min-SNR-5 weighting", train={"weighting": "min_snr"}),
    Variant("ant-uw", "ANT-UW weighting", train={"weighting": "uncertainty"}),
)


def tasks(folder: Path) -> list[Task]:
    where, runs = digits(folder), folder / "runs"
    shared = base(where)
    found = [where.task("ablations/field")]
    for seed in SEEDS:
        for variant in VARIANTS:
            recipe = variant.recipe(shared, seed)
            run, trained = runs / recipe.name, f"ablations/trained/{variant.name}-{seed}"
            of = (marked(recipe), variant.network.__name__)
            found.append(Task(trained, partial(taught, variant, recipe, run), (), of, held(run, recipe.train.steps)))
            for mark in reversed(MARKS):
                name = f"ablations/judged/{variant.name}-{seed}/{mark}"
                do = partial(judge, where, variant, run, mark, folder / "features" / name, seed)
                judged_of = (where.settings, of, mark, LOOK, NUM, SAMPLING_SEED + seed)
                found.append(Task(name, do, ("ablations/field", trained), judged_of))
            if variant.routed:
                name = f"ablations/experts/{variant.name}-{seed}"
                found.append(Task(name, partial(experts, variant, recipe, run), (trained,), of))
    return found


def taught(variant: Variant, recipe: Recipe, run: Path) -> Result:
    with variant.installed():
        return train(recipe, run) | {"network": type(at(run, recipe.train.steps).net).__name__}


def judge(where: Field, variant: Variant, run: Path, mark: int, kept: Path, seed: int) -> Result:
    """Samples of a run's averaged weights after so many steps, without guidance."""
    with variant.installed():
        scores = judged(where, at(run, mark), NUM, kept, SAMPLING_SEED + seed, LOOK)
    return {name: told(score) for name, score in scores.items()}


def experts(variant: Variant, recipe: Recipe, run: Path) -> Result:
    """What the gates select, before training and after."""
    with variant.installed():
        torch.manual_seed(recipe.train.seed)  # as training begins
        first = cast(SwitchDiT, build(recipe.net))
        last = cast(SwitchDiT, at(run, recipe.train.steps).net)
    return {"untrained": selections(first), "trained": selections(last)}


@torch.no_grad()
def selections(net: SwitchDiT) -> dict[str, Any]:
    """What the gates of a network select over all timesteps; of gates by label, over all labels too.

    experts: N·M. never: how many of them are never selected. divergence: mean Jensen-Shannon divergence from the prior
    over timesteps, in nats, 0..log 2. within: the share of selections within the matched prior's window. most_used: of
    each block, timesteps (a mean over labels) that its most-used expert is selected for. shared: of each block, how
    many experts are selected for `SHARED` of the timesteps or more; with k = M that is all. between_labels: share of
    selected experts that two labels have in common at one timestep, if the gates know them.
    """
    use, k = expert_use(net), net.config.top_k
    selected_TYNM = use.selected[:, None]
    if isinstance(net, LabelGates):
        selected_TYNM = top_k_mask(net.gates_by_label(torch.arange(net.config.timesteps)), k)
    usage_NM = selected_TYNM.double().mean((0, 1))
    found = {
        "experts": usage_NM.numel(),
        "never": int((usage_NM == 0).sum()),
        "divergence": float(use.prior_loss.mean()),
        "within": float((selected_TYNM * use.prior[:, None]).sum() / selected_TYNM.sum()),
        "most_used": (usage_NM.max(1).values * net.config.timesteps).tolist(),
        "shared": (usage_NM >= SHARED).sum(1).tolist(),
    }
    return found | ({"between_labels": in_common(selected_TYNM)} if isinstance(net, LabelGates) else {})


def in_common(selected_TYNM: Tensor) -> float:
    """Mean over timesteps, blocks and pairs of labels of the share of selected experts that the two have in common."""
    chosen_TYU = selected_TYNM.flatten(2)
    a, b = torch.combinations(torch.arange(chosen_TYU.shape[1])).unbind(1)
    return float((chosen_TYU[:, a] * chosen_TYU[:, b]).sum(2).mean() / chosen_TYU[0, 0].sum())


# What came out


def summary(ledger: Ledger) -> dict[str, Any]:
    """Every variant over its seeds, beside the base."""
    return {
        "field": ledger["ablations/field"],
        "base": base(digits(ledger.folder)).dotted(),
        "samples": {"number": NUM, "seed": f"{SAMPLING_SEED} + training seed"} | LOOK,
        "seeds": list(SEEDS),
        "comparisons": f"{len(VARIANTS) - 1} in each metric; a verdict is at 95 % for one comparison alone",
        "variants": {variant.name: of_variant(ledger, variant) for variant in VARIANTS},
        "results": ledger.all("ablations"),
    }


def of_variant(ledger: Ledger, variant: Variant) -> dict[str, Any]:
    trained = [ledger[f"ablations/trained/{variant.name}-{seed}"] for seed in SEEDS]
    marks = {str(mark): at_mark(ledger, variant, mark) for mark in MARKS}
    found = {
        "differs": variant.differs,
        "parameters": trained[0]["parameters"],
        "milliseconds_a_step": [one["milliseconds_a_step"] for one in trained],
        "steps": marks,
    }
    if variant.routed:
        routed = [ledger[f"ablations/experts/{variant.name}-{seed}"] for seed in SEEDS]
        found["experts"] = {when: over_seeds([one[when] for one in routed]) for when in ("untrained", "trained")}
    return found


def at_mark(ledger: Ledger, variant: Variant, mark: int) -> dict[str, Any]:
    """Of each metric the mean over training seeds and, of all but the base, the gap to it, of pairs that share a
    seed."""
    found = {}
    for metric in FIGURES:
        mine, theirs = (by_seed(ledger, one, mark, metric) for one in (variant, BASE))
        found[metric] = interval(mine)
        if variant is not BASE:
            found[metric]["to_base"] = gap(mine, theirs)
    return found


def by_seed(ledger: Ledger, variant: Variant, mark: int, metric: str) -> list[float]:
    return [ledger[f"ablations/judged/{variant.name}-{seed}/{mark}"][metric]["value"] for seed in SEEDS]


def over_seeds(found: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Each figure as a list, one for each seed."""
    return {name: [one[name] for one in found] for name in found[0]}
