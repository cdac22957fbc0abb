"""What a metric asks of the network that it measures with.

Shape suffixes: B batch, H height, W width, F features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn

from ...errors import HemstitchError
from ...identity import weights_hash

# What an extractor may give, in the order in which it lists it.
OUTPUTS = ("pool", "spatial", "logits")


class Extractor(ABC):
    """Pictures to features.

    name: "inception", "dinov2", "clip", "classifier", or the caller's. version: of what runs it, as "torch-fidelity
    0.4.0". hash: the first 12 hex digits of a sha256 of its weights. outputs: which of "pool" (what distances are
    measured between), "spatial" (a map that keeps places, flattened) and "logits" it gives, in this order.

    A subclass says in `_extract` how; what comes in and what goes out is checked here.
    """

    name: str
    version: str
    hash: str
    outputs: tuple[str, ...]

    @abstractmethod
    def _extract(self, images: Tensor) -> Mapping[str, Tensor]:
        """The features of pictures, uint8 (B, 3, H, W) on any device: (B, F) on any device per output."""

    @final
    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Float32 (B, F) on the CPU per output, of pictures uint8 (B, 3, H, W) on any device.

        A row is that picture's alone, up to the rounding of kernels that depends on the batch's size. GPUs compute in
        float32 for it, not in TF32, which torch's convolutions otherwise do; networks in half precision stay so. Raises
        HemstitchError for other tensors, and for features that are not finite.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise HemstitchError(
                f"{self.name} takes pictures uint8 (B, 3, H, W), not {_kind(images)}: images in -1..1 become such by "
                "evaluate.pictures.to_uint8, and grey ones by images.expand(-1, 3, -1, -1)"
            )
        with _full_precision():
            found = self._extract(images)
        if set(found) != set(self.outputs):
            raise HemstitchError(f"{self.name} was to give {', '.join(self.outputs)}, and gave {', '.join(found)}")
        return {output: self._checked(output, found[output], len(images)) for output in self.outputs}

    def _checked(self, output: str, features: Tensor, count: int) -> Tensor:
        if features.ndim < 2 or len(features) != count or not features.is_floating_point():
            raise HemstitchError(
                f"{self.name} gives {_kind(features)} as {output}: expected floats (B, F...), and B is {count} here"
            )
        features = features.detach().to("cpu", torch.float32)
        bad = (~features.isfinite()).flatten(1).any(1).nonzero().flatten()
        if len(bad):
            raise HemstitchError(
                f"{self.name} gives {output} features that are not finite, for {len(bad)} of the {count} pictures of "
                f"this batch, first for row {int(bad[0])}: its weights are damaged, or too coarse for these pictures"
            )
        return features


@final
class _Wrapped(Extractor):
    def __init__(
        self,
        function: Callable[[Tensor], Tensor | Mapping[str, Tensor]],
        name: str,
        version: str,
        hash: str,
        outputs: tuple[str, ...],
    ) -> None:
        self._function = function
        self.name, self.version, self.hash, self.outputs = name, version, hash, outputs

    def _extract(self, images: Tensor) -> Mapping[str, Tensor]:
        if isinstance(self._function, nn.Module) and self._function.training:
            raise HemstitchError(
                f"{self.name} is in training mode, where features depend on the batch: call .eval() first"
            )
        found = self._function(images)
        return {"pool": found} if isinstance(found, Tensor) else found


def wrapped(
    function: Callable[[Tensor], Tensor | Mapping[str, Tensor]],
    name: str,
    version: str = "",
    hash: str = "",
    outputs: tuple[str, ...] = ("pool",),
) -> Extractor:
    """An extractor of your own.

    function: of pictures uint8 (B, 3, H, W), giving features (B, F), or a mapping of what `outputs` names to such. It
    is called without gradients. A module must be in eval mode, and is to move the pictures to its own device.
    name: what results are filed under. hash: of its weights; for a module, "" computes it.
    """
    wrong = [output for output in outputs if output not in OUTPUTS]
    if wrong or not outputs:
        raise HemstitchError(f"outputs are some of {', '.join(OUTPUTS)}, not {', '.join(wrong) or 'none'}")
    if isinstance(function, nn.Module) and not hash:
        hash = weights_hash(function.state_dict())
    return _Wrapped(function, name, version, hash, tuple(output for output in OUTPUTS if output in outputs))


@contextmanager
def _full_precision() -> Iterator[None]:
    """Float32 convolutions and products as float32, so that features of a GPU are those of a CPU."""
    conv = getattr(torch.backends.cudnn, "conv", None)  # of torch 2.9; before, one switch for all of cuDNN
    holder, name, exact = (
        (torch.backends.cudnn, "allow_tf32", False) if conv is None else (conv, "fp32_precision", "ieee")
    )
    before = getattr(holder, name), torch.get_float32_matmul_precision()
    setattr(holder, name, exact)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        setattr(holder, name, before[0])
        torch.set_float32_matmul_precision(before[1])


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
