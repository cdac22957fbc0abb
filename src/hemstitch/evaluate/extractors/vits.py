"""Vision transformers that see more than Inception does: DINOv2's and CLIP's, by way of transformers.

Shape suffixes: B batch, H height, W width, S size, M patches on a side, D width of the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, MissingExtraError
from ...identity import weights_hash
from .base import Extractor
from .bicubic import middle_square, resized

DINOV2 = "facebook/dinov2-large"
CLIP = "openai/clip-vit-large-patch14-336"

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_DINO_SIZE = 224


@final
class Dinov2(Extractor):
    """pool: (B, D) the class token after the last norm of transformers' Dinov2Model; D is 1024 of ViT-L/14.

    For FD-DINOv2 (Stein et al. 2023). As in dgm-eval, the paper's code, at its defaults: pictures are squeezed to
    224 x 224 by pillow's bicubic filter on 8 bits (its `--clean_resize`, on floats, is not used), normalised by
    ImageNet's mean and standard deviation; and the position embeddings are resampled as facebookresearch's hub model
    does it, with a scale of 16.1 / 37, where transformers' own code would use 16 / 37. What differs is the rounding of
    the attention kernels.

    weights: a local folder of safetensors, or a model of the hub, which transformers fetches; "facebook/dinov2-large"
    if None. Raises CheckpointError, MissingExtraError (without transformers).
    """

    name = "dinov2"
    outputs = ("pool",)

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu") -> None:
        net, self.version = _loaded("Dinov2Model", weights or DINOV2)
        self.hash = weights_hash(net.state_dict())
        patch = int(net.config.patch_size)
        if _DINO_SIZE % patch:
            raise CheckpointError(f"{weights} has patches of {patch} pixels: expected a divisor of {_DINO_SIZE}, as 14")
        places = net.embeddings.position_embeddings
        net.embeddings.position_embeddings = nn.Parameter(_resampled(places, _DINO_SIZE // patch), requires_grad=False)
        self._net, self._device = net.to(device), torch.device(device)

    def _extract(self, images: Tensor) -> Mapping[str, Tensor]:
        pixels = resized(images.to(self._device), _DINO_SIZE, _DINO_SIZE)
        return {"pool": self._net(pixel_values=_normalised(pixels, *_IMAGENET)).pooler_output}


@final
class Clip(Extractor):
    """pool: (B, D) `image_embeds` of transformers' CLIPVisionModelWithProjection, of any length; D is 768 of ViT-L/14.

    For CMMD (Jayasumana et al. 2024), which divides them by their length. As in its code: the middle square of a
    picture, resized to the network's size (336) by pillow's bicubic filter on 8 bits, normalised by CLIP's mean and
    standard deviation.

    weights: a local folder of safetensors, or a model of the hub, which transformers fetches;
    "openai/clip-vit-large-patch14-336" if None. Raises CheckpointError, MissingExtraError (without transformers).
    """

    name = "clip"
    outputs = ("pool",)

    def __init__(self, weights: str | None = None, device: torch.device | str = "cpu") -> None:
        net, self.version = _loaded("CLIPVisionModelWithProjection", weights or CLIP)
        self.hash = weights_hash(net.state_dict())
        self.size = int(net.config.image_size)
        self._net, self._device = net.to(device), torch.device(device)

    def _extract(self, images: Tensor) -> Mapping[str, Tensor]:
        pixels = resized(middle_square(images.to(self._device)), self.size, self.size)
        return {"pool": self._net(pixel_values=_normalised(pixels, *_OPENAI)).image_embeds}


def _normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Float32 (value / 255 - mean) / std per channel."""
    mean_C11, std_C11 = (torch.tensor(v, device=pixels.device).reshape(-1, 1, 1) for v in (mean, std))
    return pixels.float().div_(255).sub_(mean_C11).div_(std_C11)


def _resampled(embeddings: Tensor, M: int) -> Tensor:
    """Position embeddings (1, 1 + m * m, D) for M x M patches, as DINOv2's own model makes them.

    It computes the scale from M + 0.1, once a guard against rounding, which also moves the sampled points a little.
    """
    kept, grid = embeddings[:, :1], embeddings[:, 1:]
    m = round(grid.shape[1] ** 0.5)
    if m == M:
        return embeddings.detach()
    grid = grid.reshape(1, m, m, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, scale_factor=((M + 0.1) / m, (M + 0.1) / m), mode="bicubic")
    return torch.cat((kept, grid.permute(0, 2, 3, 1).flatten(1, 2)), 1).detach()


def _loaded(kind: str, weights: str) -> tuple[Any, str]:
    """A network of transformers in eval mode and float32, and the version of what loaded it. Nothing is unpickled."""
    try:
        import transformers
    except ModuleNotFoundError:
        raise MissingExtraError("transformers", "transformers") from None
    local = Path(weights).exists()
    if local:
        _check_folder(Path(weights), kind)
    try:
        net, told = getattr(transformers, kind).from_pretrained(
            weights, local_files_only=local, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # whatever transformers, the hub and safetensors make of it
        what = "holds" if local else "is no local folder, and the hub gave"
        said = (str(error).splitlines() or [repr(error)])[0][:300]
        raise CheckpointError(
            f"{weights} {what} no {kind} that loads ({said}): give the folder that it was saved to with "
            "save_pretrained (config.json and safetensors)"
        ) from error
    # a whole CLIP's text weights go unused, as they should: unexpected keys are no error
    lacking = [str(name) for what in ("missing_keys", "mismatched_keys") for name in told.get(what, ())]
    if lacking:
        raise CheckpointError(f"{weights} lacks weights of its {kind}: {', '.join(sorted(lacking)[:4])}; copy it again")
    net.requires_grad_(False)
    return net.eval().float(), f"transformers {transformers.__version__}"


def _check_folder(folder: Path, kind: str) -> None:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json: give the folder that a {kind} was saved to")
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(file for ending in ("*.bin", "*.pt", "*.pth") for file in folder.glob(ending))
    if pickled:
        raise CheckpointError(
            f"{pickled[0]} is pickled, and loading it could run what it holds: fetch model.safetensors instead or, "
            "where you trust it, load it with transformers and save_pretrained() it as safetensors"
        )
    raise CheckpointError(f"{folder} has no model.safetensors: copy the whole folder")
