"""What stands around two denoisers: schedulers, autoencoders, text encoders, told from their configurations."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import Any

from .findings import Finding, compared, plain, text

Config = Mapping[str, Any]

_OWN = re.compile(r"EDM|Cosine|ScoreSde|KarrasVe|CMStochastic|SCM|IPNDM|VQDiffusion|Amused|DDPMWuerstchen")
_SCALED = ("LCMScheduler", "TCDScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
_SECOND = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
# Autoencoders that share a latent space where one was made for the other: taesd, the consistency decoder.
_KIN = {"AutoencoderKL", "AutoencoderTiny", "ConsistencyDecoderVAE", "AsymmetricAutoencoderKL"}
_SCALING = {"AutoencoderKL": 0.18215, "VQModel": 0.18215, "AutoencoderTiny": 1.0}  # where a configuration has none

_FAMILY = "take a small one of the large one's family"
_SEE = (
    "decode a latent of the small pipeline with the large one's VAE: if the picture is the same, so are the spaces "
    "(a decoder tuned alone, such as sd-vae-ft-mse, is harmless)"
)
_OTHER_SPACE = (
    "the members denoise different latents and can't hand over; take a small one trained on the large one's VAE"
)


def class_of(config: Config) -> str:
    return text(config.get("_class_name"))


def is_flow(scheduler: Config) -> bool:
    """Whether a scheduler's process is the straight line from data to noise rather than variance preserving."""
    told = scheduler.get("prediction_type") == "flow_prediction" or bool(scheduler.get("use_flow_sigmas"))
    return told or class_of(scheduler).startswith(("Flow", "Helios", "LTX"))


def prediction(scheduler: Config) -> str:
    return "flow" if is_flow(scheduler) else text(scheduler.get("prediction_type", "epsilon"))


def noise(scheduler: Config) -> str:
    """The noise schedule in words: two schedules are the same if their words are."""
    name, steps = class_of(scheduler), f"{text(scheduler.get('num_train_timesteps', 1000))} steps"
    if is_flow(scheduler):
        return f"flow, {steps}"
    if own := _OWN.match(name):
        return f"{own[0]}'s own, {steps}, data {text(scheduler.get('sigma_data'))}"
    shape = text(scheduler.get("beta_schedule", "scaled_linear" if name in _SCALED else "linear"))
    first, last = (0.00085, 0.012) if name in _SCALED + _SECOND else (0.0001, 0.02)
    said = shape
    if shape != "squaredcos_cap_v2":
        said += f" {text(scheduler.get('beta_start', first))}…{text(scheduler.get('beta_end', last))}"
    if (betas := scheduler.get("trained_betas")) is not None:
        said = f"betas of its own ({zlib.crc32(str(plain(betas)).encode()):08x})"
    if scheduler.get("rescale_betas_zero_snr"):
        said += ", zero SNR"
    if (shift := scheduler.get("snr_shift_scale")) is not None:
        said += f", SNR shift {text(shift)}"
    return f"{said}, {steps}"


def compare_schedulers(small: Config, large: Config) -> list[Finding]:
    """Solvers may differ, the large one's is used. What members predict, and under what noise, may not.

    The findings "prediction type" and "noise schedule" are refusals that `stitch(..., processes=)` lifts.
    """
    both = (small, large)
    convert = 'stitch(pipe, small, processes={"small": small_pipe.scheduler}) asks it in its own terms'
    if any(_OWN.match(class_of(s)) or s.get("rescale_betas_zero_snr") or s.get("trained_betas") for s in both):
        convert = f"schedules of this kind (EDM, zero terminal SNR, own betas) are not converted; {_FAMILY}"
    fix = "the large pipeline's is used for both; a distilled member (LCM, Turbo, Lightning) draws badly under another"
    found = compared("scheduler", [class_of(s) for s in both], fix, "note")
    fix = f"the scheduler would misread the small one's answers; {convert}"
    found += compared("prediction type", [prediction(s) for s in both], fix)
    fix = f"at the same timestep the members expect different amounts of noise; {convert}"
    found += compared("noise schedule", [noise(s) for s in both], fix)
    timesteps = [text(s.get("timestep_type", "discrete")) for s in both]
    if timesteps[0] != timesteps[1]:
        fix = "one member is told the number of a timestep, the other the logarithm of the noise; take two alike"
        found += compared("timesteps", timesteps, fix)
    if is_flow(small) and is_flow(large):
        fix = "a shift places the solver's steps and is no part of the members: the large pipeline's is used for both"
        found += compared("flow shift", [_shift(s) for s in both], fix, "note")
    return found


def _shift(scheduler: Config) -> str:
    if scheduler.get("use_dynamic_shifting"):
        return "dynamic"
    return text(scheduler.get("flow_shift", scheduler.get("shift", 1.0)))


def compare_autoencoders(small: Config, large: Config, same_weights: bool | None) -> list[Finding]:
    """Whether two latent spaces are one. same_weights: None where the weights were not compared."""
    both = (small, large)
    names = [class_of(c) for c in both]
    if names[0] != names[1]:
        if set(names) <= _KIN:
            return compared("VAE", names, f"the latent spaces may still be one; {_SEE}", "note")
        return compared("VAE", names, _OTHER_SPACE)
    facts = {
        "channels": [_first(c, "latent_channels", "z_dim") for c in both],
        "scaling factor": [c.get("scaling_factor", _SCALING.get(names[0])) for c in both],
        "shift": [c.get("shift_factor") or 0 for c in both],
        "halvings": [_halvings(c) for c in both],
        "latents_mean": [plain(c.get("latents_mean")) for c in both],
        "latents_std": [plain(c.get("latents_std")) for c in both],
    }
    differ = [what for what, (a, b) in facts.items() if a != b and a is not None and b is not None]
    if differ:
        shown = ["; ".join(f"{what} {text(facts[what][i])}" for what in differ) for i in (0, 1)]
        return compared("VAE", shown, f"{' and '.join(differ)} differ: {_OTHER_SPACE}", alike=False)
    shown = [f"{names[0]} {text(facts['channels'][0])} × {text(facts['scaling factor'][0])}"] * 2
    if same_weights is False:
        fix = f"the configurations agree and the weights do not: the latent spaces may differ; {_SEE}"
        return compared("VAE", shown, fix, "note", alike=False)
    return compared("VAE", [f"{said}, same weights" for said in shown] if same_weights else shown, "")


def _first(config: Config, *keys: str) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)


def _halvings(vae: Config) -> Any:
    blocks = plain(vae.get("block_out_channels"))
    return len(blocks) - 1 if isinstance(blocks, list) else vae.get("scale_factor_spatial")


def compare_text_encoders(what: str, small: Config, large: Config) -> list[Finding]:
    """Whether both members were trained on embeddings of one kind of encoder. Weights are not compared."""
    shown = [_encoder(small), _encoder(large)]
    if all("WithProjection" in class_of(c) for c in (small, large)):
        shown = [
            f"{said}, pooled {text(c.get('projection_dim'))}" for said, c in zip(shown, (small, large), strict=True)
        ]
    fix = "the large pipeline's encoder makes the embeddings for both, and the small one was trained with another"
    return compared(what, shown, f"{fix}; {_FAMILY}")


def _encoder(config: Config) -> str:
    """Its kind, width and layers, and the words it knows."""
    if isinstance(inner := config.get("text_config"), Mapping):
        config = {**inner, **config}
    name = text(config.get("model_type") or class_of(config))
    width, layers = _first(config, "hidden_size", "d_model"), _first(config, "num_hidden_layers", "num_layers")
    return f"{name} {text(width)} × {text(layers)}, {text(config.get('vocab_size'))} words"
