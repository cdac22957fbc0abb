"""Images to latents and back: diffusers' autoencoders from a local folder, or none at all ("identity").

The only module that imports diffusers' autoencoders. Latents are raw here, as the encoder gives them: who stores them
normalises them, by the published factors or by measured statistics.

Shape suffixes: B batch, C channels, S size.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from . import seeds
from .data.dataset import restored
from .denoiser import Spec
from .errors import CheckpointError, HemstitchError, MissingExtraError
from .files import read_json_file
from .marked import sha256

IDENTITY = "identity"
KINDS = ("AutoencoderKL", "AutoencoderTiny")
WEIGHTS = "diffusion_pytorch_model"

# Streams of seeds.py for the posterior's noise: of an image, and of its mirror image. Sampling and training draw below.
ENCODE, ENCODE_FLIPPED = 2**21, 2**21 + 1


class Autoencoder(ABC):
    """Images (B, 3, S, S) in -1..1 to latents (B, channels, S / factor, S / factor), and back.

    name: the folder it was opened from, or "identity". fingerprint: the first 12 hex digits of the sha256 of its
    weights' file. channels: of the latents; None means those of the images. mean, std: per channel, the published
    normalisation (latent - mean) / std; empty where there is none. scaling_factor, shift_factor: of its config, which
    says (latent - shift_factor) * scaling_factor, as 0.18215 for Stable Diffusion's.
    """

    name: str
    fingerprint: str
    factor: int
    channels: int | None
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @abstractmethod
    def shape(self, channels: int, size: int) -> tuple[int, int]:
        """(channels, size) of the latents of such images. HemstitchError if it can't encode them."""

    @abstractmethod
    def encode(self, images: Tensor, key_B2: Tensor | None = None, flipped: bool = False) -> Tensor:
        """Latents of images (B, C, S, S) in -1..1, float32 on the autoencoder's device (the identity has none).

        key_B2: (seed, index) per image, see `seeds.keys`. They and `flipped` key the noise with which a latent is
        drawn from the posterior of a variational autoencoder, so that it does not depend on the batch it was encoded
        in or on who encoded it, up to the rounding of the kernels. None gives the mean of the posterior.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, S, S) in -1..1, clamped, from raw latents (B, C, S, S): normalised ones times std plus mean."""


@final
class Identity(Autoencoder):
    """Pixel space: the images themselves are what is stored."""

    name = fingerprint = IDENTITY
    factor = 1
    channels = None

    def shape(self, channels: int, size: int) -> tuple[int, int]:
        return channels, size

    def encode(self, images: Tensor, key_B2: Tensor | None = None, flipped: bool = False) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(-1, 1)


@final
class DiffusersAutoencoder(Autoencoder):
    """diffusers' AutoencoderKL, whose posterior is sampled, or AutoencoderTiny, which has none. Float32.

    Grey images are encoded with their channel repeated, and come back in colour.
    """

    def __init__(self, net: Any, name: str, fingerprint: str) -> None:
        self.net = net
        self.name = name
        self.fingerprint = fingerprint
        config = net.config
        self.channels = C = int(config.latent_channels)
        levels = config.get("encoder_block_out_channels") or config.block_out_channels
        self.factor = 2 ** (len(levels) - 1)
        self._image_channels = int(config.in_channels)
        self.scaling_factor = float(config.scaling_factor)
        self.shift_factor = float(config.get("shift_factor") or 0.0)
        self.mean = tuple(map(float, config.get("latents_mean") or [self.shift_factor] * C))
        self.std = tuple(float(std) / self.scaling_factor for std in config.get("latents_std") or [1.0] * C)
        numbers = (*self.mean, *self.std)
        if len(numbers) != 2 * C or not all(map(math.isfinite, numbers)) or min(self.std) <= 0:
            raise CheckpointError(f"the config of {name} scales latents by no finite, positive factor per channel")

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def shape(self, channels: int, size: int) -> tuple[int, int]:
        if channels not in (1, self._image_channels):
            raise HemstitchError(
                f"{self.name} encodes images of {self._image_channels} channels (or 1, repeated), not {channels}"
            )
        if size % self.factor:
            raise HemstitchError(
                f"{self.name} makes images {self.factor} times smaller, and {size} is no multiple of that: "
                f"give images of size {-(-size // self.factor) * self.factor}"
            )
        assert self.channels is not None
        return self.channels, size // self.factor

    @torch.inference_mode()
    def encode(self, images: Tensor, key_B2: Tensor | None = None, flipped: bool = False) -> Tensor:
        self.shape(images.shape[1], images.shape[2])
        images = images.to(self.device, torch.float32, non_blocking=True)
        encoded = self.net.encode(images.expand(-1, self._image_channels, -1, -1))
        if not hasattr(encoded, "latent_dist"):
            return encoded.latents
        posterior = encoded.latent_dist
        if key_B2 is None:
            return posterior.mean
        stream = ENCODE_FLIPPED if flipped else ENCODE
        return posterior.mean + posterior.std * seeds.normal(key_B2, stream, posterior.mean.shape[1:], self.device)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise HemstitchError(f"latents of {self.name} are (B, {self.channels}, S, S), not {tuple(latents.shape)}")
        return self.net.decode(latents.to(self.device, torch.float32)).sample.clamp(-1, 1)


def open_autoencoder(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Autoencoder:
    """The autoencoder of a local folder, in eval mode, or "identity".

    path: a folder that diffusers' `save_pretrained` wrote, of an AutoencoderKL or AutoencoderTiny, or of a pipeline
    that has one under vae/. Weights are safetensors; nothing is fetched and nothing is unpickled. Raises
    CheckpointError (no such folder, pickled or damaged weights), MissingExtraError (without diffusers).
    """
    if os.fspath(path) == IDENTITY:
        return Identity()
    folder = _folder(Path(path))
    kind = read_json_file(folder / "config.json").get("_class_name")
    if kind not in KINDS:
        raise CheckpointError(
            f"{folder / 'config.json'} is of a {kind}: an autoencoder here is one of {_either(KINDS)}"
        )
    weights = _weights(folder)
    try:
        import diffusers
    except ImportError:
        raise MissingExtraError("diffusers", "diffusers") from None
    variant = weights.name.removeprefix(WEIGHTS).removesuffix(".safetensors").removeprefix(".") or None
    try:
        net, told = getattr(diffusers, kind).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            variant=variant,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # whatever diffusers and safetensors make of a damaged folder
        raise CheckpointError(f"{folder} holds no {kind} that loads ({_first_line(error)}): copy it again") from error
    wrong = [f"{what.removesuffix('_keys')} {', '.join(map(str, told[what][:4]))}" for what in _UNFIT if told.get(what)]
    if wrong:
        raise CheckpointError(f"{weights} does not hold the weights of its config: {'; '.join(wrong)}")
    net.requires_grad_(False)
    return DiffusersAutoencoder(net.eval().to(device), os.path.abspath(path), sha256(weights)[:12])


@dataclass(frozen=True)
class Decoder:
    """What makes images, (B, 3, S, S) in -1..1, of a network's samples: their normalisation undone, then decoded.

    mean, std: per channel, of the samples; empty where they are raw. slice: how many are decoded at a time; the memory
    that decoding takes grows with it.
    """

    autoencoder: Autoencoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    slice: int = 16

    @property
    def fingerprint(self) -> str:
        return self.autoencoder.fingerprint

    @property
    def told(self) -> str:
        """What decides the pixels: the autoencoder's weights and configuration, the normalisation and the slice."""
        config = getattr(getattr(self.autoencoder, "net", None), "config", {})
        decides = json.dumps(
            [{k: v for k, v in dict(config).items() if not k.startswith("_")}, self.mean, self.std],
            sort_keys=True,
            default=str,
        )
        return f"{self.fingerprint} {hashlib.sha256(decides.encode()).hexdigest()[:8]} slice {self.slice}"

    def size(self, latents: int) -> int:
        """The side of the images of latents of this side."""
        return latents * self.autoencoder.factor

    def __call__(self, samples: Tensor) -> Tensor:
        raw = restored(samples, self.mean, self.std)
        return torch.cat([self.autoencoder.decode(part) for part in torch.split(raw, self.slice)])


def decoder(path: str | os.PathLike[str], spec: Spec, device: torch.device | str = "cpu", slice: int = 16) -> Decoder:
    """The decoder of a network's samples by the autoencoder of a folder.

    Raises HemstitchError if the samples are of another autoencoder than the folder's.
    """
    if slice < 1:
        raise HemstitchError(f"slice is how many samples are decoded at a time, at least 1, not {slice}")
    autoencoder = open_autoencoder(path, device)
    if spec.space.startswith("latents:") and autoencoder.fingerprint not in spec.space:
        raise HemstitchError(f"these samples are of the space {spec.space}; {path} is {autoencoder.fingerprint}")
    if autoencoder.channels not in (None, spec.channels):
        raise HemstitchError(f"{path} decodes {autoencoder.channels} channels; these samples have {spec.channels}")
    # samples of a cache say what they were normalised by; of others, the published scaling is what is usual
    known = bool(spec.mean) or spec.space.startswith("latents:")
    mean, std = (spec.mean, spec.std) if known else (autoencoder.mean, autoencoder.std)
    return Decoder(autoencoder, mean, std, slice)


_UNFIT = ("missing_keys", "unexpected_keys", "mismatched_keys")


def _folder(path: Path) -> Path:
    """The folder with the autoencoder's own config.json."""
    for folder in (path, path / "vae"):
        if (folder / "config.json").is_file():
            return folder
    what = "has no config.json, nor vae/config.json" if path.is_dir() else "is no folder"
    raise CheckpointError(
        f"{path} {what}: give 'identity', or the local folder of a diffusers autoencoder ({_either(KINDS)}) or of a "
        "pipeline that has one under vae/"
    )


def _weights(folder: Path) -> Path:
    """The one file of weights: the plain one, else the only variant (as .fp16)."""
    plain = folder / f"{WEIGHTS}.safetensors"
    if plain.is_file():
        return plain
    variants = sorted(folder.glob(f"{WEIGHTS}.*.safetensors"))
    if len(variants) == 1:
        return variants[0]
    if variants:
        raise CheckpointError(f"{folder} has {_either([v.name for v in variants])}: keep one of them, as {plain.name}")
    pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))
    if pickled:
        raise CheckpointError(
            f"{pickled[0]} is pickled, and loading it could run what it holds: fetch {plain.name} instead or, where "
            "you trust it, load it with diffusers (use_safetensors=False) and save_pretrained() it as safetensors"
        )
    raise CheckpointError(f"{folder} has no {plain.name}: copy the whole folder")


def _either(names: list[str] | tuple[str, ...]) -> str:
    return " or ".join(names)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
