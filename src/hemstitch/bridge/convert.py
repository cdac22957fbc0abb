"""Members that answer in another way than the pipeline asks: another prediction type or noise process, a learned
variance more or less, another number of classes.

The pipeline's scheduler asks in the terms of its own denoiser. A converted member is asked at its own time of equal
log-SNR, about the state rescaled to its own process, and its x_0 and eps are answered back as the prediction that the
scheduler expects. (B) batch, (C) latent channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import StitchError
from ..process import Process, handed_back, per_row

Call = Callable[..., Any]

# Networks whose times are known: 0..T, or (Flux) 0..1. Others count otherwise (Chroma, Lumina, Z-Image, …).
CONVERTED = (
    "UNet2DConditionModel",
    "UNet2DModel",
    "UNetMotionModel",
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "WanTransformer3DModel",
)

_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


def process_of(scheduler: Any) -> Process:
    """The noise process and prediction type that a diffusers scheduler stands for.

    Raises StitchError for those that are none of ours: EDM's, tables of betas, rescaled to zero terminal SNR.
    """
    config, name = scheduler.config, type(scheduler).__name__
    T = int(config.get("num_train_timesteps", 1000))
    prediction = config.get("prediction_type", "epsilon")
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        return Process("flow", "flow", timesteps=T)
    if name.startswith(("EDM", "CM", "Cosine")):
        raise StitchError(f"{name} has a noise process of its own: members under it are not converted")
    if prediction not in _PREDICTIONS:
        raise StitchError(f"{name} predicts {prediction!r}; converted are {', '.join(_PREDICTIONS)}")
    if config.get("trained_betas") is not None:
        raise StitchError(f"{name} has a table of betas (trained_betas): only named schedules are converted")
    if config.get("rescale_betas_zero_snr") or config.get("snr_shift_scale", 1.0) != 1.0:
        raise StitchError(
            f"{name} is rescaled (to zero terminal SNR, or by a shift): members under it are not converted"
        )
    schedule = _SCHEDULES.get(config.get("beta_schedule", "linear"))
    if schedule is None:
        raise StitchError(f"{name} has the schedule {config.beta_schedule!r}; converted are {', '.join(_SCHEDULES)}")
    if schedule != "cosine" and not {"beta_start", "beta_end"} <= set(config):
        raise StitchError(f"{name} has a noise process of its own: members under it are not converted")
    betas = None if schedule == "cosine" else (float(config.beta_start), float(config.beta_end))
    return Process(schedule, _PREDICTIONS[prediction], timesteps=T, betas=betas)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Adapter:
    """How one member is asked. channels: C of the latents. out: channels that the pipeline's own denoiser answers.

    theirs: the member's process, None where it is the pipeline's. unit_time: networks of this class take flow times in
    0..1 rather than 0..T. packed: latents are tokens, (B, L, C). classes: the member's number of classes where the
    pipeline's null label is not that (DiT).
    """

    channels: int
    out: int
    theirs: Process | None = None
    unit_time: bool = False
    packed: bool = False
    classes: int | None = None

    def __call__(self, member: Call, arguments: dict[str, Any], sample: str, time: str, ours: Process | None) -> Any:
        """Ask `member` with these keyword arguments, for what the pipeline wants.

        sample, time: the names of the latents and of the time. ours: the pipeline's process.
        """
        if self.classes is not None and arguments.get("class_labels") is not None:
            arguments = {**arguments, "class_labels": null_labels(arguments["class_labels"], self.classes)}
        if self.theirs is None or ours is None or self.theirs == ours:
            return _replaced(member(**arguments), self._fitted)
        theirs, x, t, axis = self.theirs, arguments[sample], arguments[time], self._axis
        state = x.narrow(axis, 0, self.channels).float()
        t_ours = torch.as_tensor(t, device=x.device).reshape(-1).expand(len(x)).double()
        if ours.is_flow and not self.unit_time:
            t_ours = t_ours / ours.timesteps
        t_theirs, state_theirs = t_ours, state
        if not theirs.same_noise(ours):
            t_theirs = theirs.time_of(ours.log_snr(t_ours))
            (alpha, sigma), (alpha_theirs, sigma_theirs) = ours.alpha_sigma(t_ours), theirs.alpha_sigma(t_theirs)
            rescale = torch.sqrt((alpha_theirs**2 + sigma_theirs**2) / (alpha**2 + sigma**2))
            state_theirs = per_row(rescale, state) * state
            told = t_theirs if not theirs.is_flow or self.unit_time else t_theirs * theirs.timesteps
            beside = x.narrow(axis, self.channels, x.shape[axis] - self.channels)  # a mask, the masked picture
            asked = torch.cat([state_theirs.to(x.dtype), beside], axis)
            arguments = {**arguments, sample: asked, time: told.float()}

        def answer(output: Tensor) -> Tensor:
            said = output.narrow(axis, 0, self.channels).float()
            x0, eps = theirs.x0_eps(said, state_theirs, t_theirs)
            if t_theirs is not t_ours:
                x0, eps = handed_back(ours, theirs, t_ours, state, x0, eps)
            target = ours.target(x0, eps, t_ours).to(output.dtype)
            beside = output.narrow(axis, self.channels, output.shape[axis] - self.channels)
            return self._fitted(torch.cat([target, beside], axis))

        return _replaced(member(**arguments), answer)

    @property
    def _axis(self) -> int:
        """Of the channels."""
        return 2 if self.packed else 1

    def _fitted(self, output: Tensor) -> Tensor:
        """As many channels as the pipeline expects: a learned variance is cut off, or zeros stand for one."""
        axis = self._axis
        have = output.shape[axis]
        if have >= self.out:
            return output.narrow(axis, 0, self.out)
        shape = list(output.shape)
        shape[axis] = self.out - have
        return torch.cat([output, output.new_zeros(shape)], axis)


def null_labels(labels: Tensor, classes: int) -> Tensor:
    """The labels of diffusers' DiTPipeline, whose null label is always 1000, for a network of `classes` classes.

    With 1000 classes or fewer, 1000 can only be the null label; with more, a whole second half of them is.
    """
    if classes <= 1000:
        return torch.where(labels == 1000, classes, labels)
    half = len(labels) // 2
    unconditional = (
        (labels[half:] == 1000).all() if len(labels) % 2 == 0 and half else torch.zeros((), dtype=torch.bool)
    )
    second = torch.arange(len(labels), device=labels.device) >= half
    return torch.where(unconditional.to(labels.device) & second, classes, labels)


def _replaced(result: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A network's answer, a tuple or an output with .sample, with its tensor changed."""
    if isinstance(result, tuple):
        return (change(result[0]), *result[1:])
    return type(result)(sample=change(result.sample))
