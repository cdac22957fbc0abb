"""Inception-v3 as FID, IS, KID and sFID are computed with: torch-fidelity's port of the 2015 TensorFlow graph.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...errors import CheckpointError, HemstitchError, MissingExtraError
from ...identity import weights_hash
from .base import Extractor

# Under these names torch-fidelity gives what its FID and its IS use.
_POOL, _LOGITS = "2048", "logits_unbiased"

# The graph's blocks are mixed (Mixed_5b here), mixed_1, mixed_2, mixed_3 (Mixed_6a), mixed_4 (Mixed_6b), mixed_5,
# mixed_6 (Mixed_6d) to mixed_10 (Mixed_7c); the convolution without a tower is the branch of 1x1. Its output is called
# mixed_6/conv, after batch norm and ReLU.
_SPATIAL = "Mixed_6d.branch1x1"
_SPATIAL_CHANNELS = 7
_FILE = "weights-inception-2015-12-05-6726825d.pth"

_PORT = "torch_fidelity.feature_extractor_inceptionv3"
# torchvision describes these two at import, by the names that its compiled part gives them.
_DESCRIBED = ("nms", "qnms")
_OPERATOR = re.compile("operator torchvision::[a-z]+ does not exist")
_declared: list[torch.library.Library] = []  # a library that is let go of takes its declarations along


@final
class Inception(Extractor):
    """torch-fidelity's FeatureExtractorInceptionV3.

    pool: (B, 2048) "2048", for FID (Heusel et al. 2017) and KID. spatial: (B, 2023), the first 7 channels of the
    17 x 17 map mixed_6/conv in the order (height, width, channel), for sFID (Nash et al. 2021) as ADM's evaluator has
    it. logits: (B, 1008) "logits_unbiased", for IS. Pictures of any size are resized to 299 x 299 in the network, as
    TensorFlow 1 did it.

    weights: a .pth or .safetensors file of its state dict; nothing of it is unpickled but tensors. None fetches
    torch-fidelity's, once, into torch's cache. Raises CheckpointError, MissingExtraError (without torch-fidelity),
    HemstitchError (nothing could be fetched, or torch-fidelity cannot be imported).
    """

    name = "inception"
    outputs = ("pool", "spatial", "logits")

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        port = inception_port()
        self.version = f"torch-fidelity {_version()}"
        tensors = _fetched(port.URL_INCEPTION_V3) if weights is None else _read(Path(weights))
        self._net = _built(port, tensors, str(weights or port.URL_INCEPTION_V3))
        self.hash = weights_hash(self._net.state_dict())
        self._device = torch.device(device)
        self._net.to(self._device)

    def _extract(self, images: Tensor) -> Mapping[str, Tensor]:
        maps: list[Tensor] = []  # of this call: two threads may be in here
        branch = self._net.get_submodule(_SPATIAL)
        hook = branch.register_forward_hook(lambda module, inputs, output: maps.append(output))
        try:
            pool, logits = self._net(images.to(self._device))
        finally:
            hook.remove()
        return {"pool": pool, "spatial": flattened(maps[0], _SPATIAL_CHANNELS), "logits": logits}


def flattened(map_BCHW: Tensor, channels: int) -> Tensor:
    """The first channels of a map, (B, H * W * channels) in the order (height, width, channel)."""
    return map_BCHW[:, :channels].permute(0, 2, 3, 1).flatten(1)


def inception_port() -> Any:
    """torch-fidelity's module of Inception.

    It imports torchvision, for data sets and transforms that are Python. That asks for the operators of its compiled
    part, which loads only beside the very build of torch that it was made for. Where it does not, and only then, those
    are declared, so that the Python can be imported; calling them stays an error. Raises MissingExtraError
    (torch-fidelity is not there), HemstitchError (it, or torchvision, cannot be imported all the same).
    """
    try:
        return import_module(_PORT)
    except ModuleNotFoundError as error:
        raise _absent(error) from None
    except Exception as error:  # of builds that do not match, which fail in many ways
        if not (isinstance(error, RuntimeError) and _OPERATOR.search(str(error))):
            raise _mismatch(error) from error
    _declare()
    try:
        return import_module(_PORT)
    except Exception as error:
        raise _mismatch(error) from error


def _declare() -> None:
    """Declare the operators that torchvision describes and its compiled part did not bring."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in _DESCRIBED:
        if not hasattr(torch.ops.torchvision, name):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)


def _absent(error: ModuleNotFoundError) -> Exception:
    if (error.name or "").partition(".")[0] == "torch_fidelity":
        return MissingExtraError("torch-fidelity", "inception")
    return HemstitchError(f"torch-fidelity needs {error.name}, which is not installed: pip install {error.name}")


def _mismatch(error: Exception) -> HemstitchError:
    said = str(error).strip().partition("\n")[0][:200] or repr(error)
    return HemstitchError(
        f"torch-fidelity cannot be imported ({said}): torch {torch.__version__} and torchvision are to be builds that "
        "belong together; install both anew from one index (pip install --force-reinstall torch torchvision "
        "--index-url https://download.pytorch.org/whl/cpu, or that of your CUDA)"
    )


def _version() -> str:
    try:
        return version_of("torch-fidelity")
    except PackageNotFoundError:
        return "of unknown version"


def _fetched(url: str) -> dict[str, Tensor]:
    """torch-fidelity's own weights: through torch's cache as it does, but checked, and without unpickling objects."""
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # the network's errors are many, and so are those of a damaged file in the cache
        raise HemstitchError(
            f"the weights of Inception could not be fetched from {url} ({error}): fetch {_FILE} where there is a "
            "network, and give its path as weights"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or CheckpointError."""
    if not path.is_file():
        raise CheckpointError(
            f"{path} is no file: give {_FILE} of torch-fidelity's releases, or its tensors as safetensors"
        )
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # loaders meet hostile bytes with errors of every type
        raise CheckpointError(
            f"{path} does not load as tensors alone ({str(error).splitlines()[0][:200] if str(error) else error!r}); "
            f"pickled objects are never loaded: give {_FILE} of torch-fidelity's releases"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path} is not a state dict of tensors: give {_FILE} of torch-fidelity's releases")
    return found


def _built(port: Any, tensors: Mapping[str, Tensor], where: str) -> Any:
    """The network with these weights.

    Its constructor unpickles whatever it is given, so it is given a file in memory that was written just here.
    """
    counted = {name.removesuffix("running_var") + "num_batches_tracked" for name in tensors if name.endswith("_var")}
    whole = {name: torch.tensor(0) for name in counted} | dict(tensors)  # safetensors of others often lack the counts
    written = io.BytesIO()
    torch.save(whole, written)
    written.seek(0)
    try:
        return port.FeatureExtractorInceptionV3("inception", [_POOL, _LOGITS], written)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise CheckpointError(
            f"{where} is not of torch-fidelity's Inception ({' '.join(lines[1:2])[:200]}): give {_FILE} of its "
            "releases, not torchvision's inception_v3"
        ) from None
