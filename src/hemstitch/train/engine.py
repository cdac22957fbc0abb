"""The processes that train together: where they compute, how they share weights and gradients, how they agree.

accelerate says who is who, under `accelerate launch`, torchrun or neither, and holds the trackers. Sharding is torch's
`fully_shard` on every device: accelerate's own falls back to plain data parallelism on CPU.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from ..errors import HemstitchError, MissingExtraError
from ..models import DiT, SwitchDiT
from ..recipe import TrainRecipe
from .objective import Objective
from .sharding import laid_out_like, whole

if TYPE_CHECKING:
    from accelerate import Accelerator

R = TypeVar("R")

BACKEND = "inductor"  # of torch.compile
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """One process's view of all.

    device: where it computes. rank: which it is of `world`. precision: of its matrix products. sharded: whether weights
    are.
    """

    def __init__(
        self, train: TrainRecipe, out: Path, device: str | None = None, trackers: Sequence[str] | None = None
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise HemstitchError("there is no GPU that torch can use here: leave out --device, or say cpu")
        cpu = device == "cpu" or not torch.cuda.is_available()
        self.accelerator = _accelerator(cpu, out, trackers)
        if dist.is_initialized():
            atexit.register(_leave)  # however it ends: threads of a group that is left open can abort the exit
        self.device: torch.device = self.accelerator.device
        on_gpu = self.device.type == "cuda"
        self.precision = ("bf16" if on_gpu else "fp32") if train.precision == "auto" else train.precision
        if self.precision == "fp16" and not on_gpu:
            raise HemstitchError("train.precision fp16 needs a GPU: use bf16 or fp32 here")
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if launched not in ("no", self.precision):
            warnings.warn(
                f"the launcher says mixed precision {launched} and the recipe {self.precision}, which is used: "
                f"pass --precision {launched} to hemstitch",
                stacklevel=2,
            )
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        launched_sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        self.sharded = (train.parallel == "fsdp" or launched_sharded) and dist.is_initialized()
        if self.sharded and self.precision == "fp16":
            raise HemstitchError("train.precision fp16 does not go with fsdp: use bf16")
        if train.batch % (self.world * train.accumulate):
            parts = f"{self.world} processes × {train.accumulate} parts (train.accumulate)"
            raise HemstitchError(
                f"train.batch {train.batch} does not divide into {parts}: run with another number of processes, "
                "or train another batch into another --out"
            )
        # Beside the gradients' own group: it reaches the host, and a peer that died fails it at once.
        self._control = dist.new_group(backend="gloo", timeout=timedelta(minutes=10)) if self.world > 1 else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @property
    def main(self) -> bool:
        return self.rank == 0

    def rows(self, train: TrainRecipe, part: int) -> range:
        """The rows of the global batch that this process computes in part `part` of a step."""
        count = train.batch // (self.world * train.accumulate)
        first = (part * self.world + self.rank) * count
        return range(first, first + count)

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision])

    def wrap(self, objective: Objective, train: TrainRecipe) -> nn.Module:
        """Put the objective on the device, compiled, recomputing and shared out as the recipe says. In place, but for
        the data-parallel wrapper that is returned.
        """
        objective.to(self.device)
        parts = _regions(objective.net)
        for part in parts:
            if train.compile:
                part.forward = torch.compile(part.forward, dynamic=False, backend=BACKEND)
            if train.recompute:
                part.forward = partial(checkpoint, part.forward, use_reentrant=False)
        if self.sharded:
            _shard(objective, parts, self.device, DTYPES[self.precision])
            return objective
        if self.world > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            return DistributedDataParallel(objective, device_ids=ids, gradient_as_bucket_view=True)
        return objective

    def unsynced(self, objective: nn.Module) -> AbstractContextManager[Any]:
        """Where gradients are added up before they are shared."""
        return objective.no_sync() if isinstance(objective, DistributedDataParallel) else nullcontext()

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        if self._control is None:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, self._control)
        return bool(flags)

    def on_main(self, work: Callable[[], R]) -> R | None:
        """Do something in the main process only; if it fails there, every process ends with an error."""
        result, failure = None, None
        if self.main:
            try:
                result = work()
            except BaseException as error:
                failure = error
        failed = self.any(failure is not None)
        if failure is not None:
            raise failure
        if failed:
            raise HemstitchError("the main process stopped; its own message says why")
        return result

    def numbers(self, values: Sequence[float]) -> list[float]:
        """The main process's numbers, in all: as many everywhere."""
        if self._control is None:
            return list(values)
        shared = torch.tensor(list(values), dtype=torch.float64)
        dist.broadcast(shared, 0, self._control)
        return shared.tolist()

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over processes, in all."""
        if self.world > 1:
            dist.all_reduce(tensor)
            tensor = tensor / self.world
        return tensor

    def gather(
        self, tensors: Mapping[str, Tensor], place: Callable[[str, Tensor], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Whole tensors on the host of the main process; nothing in the others, which take part.

        place: where each is copied to; without it they are the live ones where those are on the host already.
        """
        found = {}
        for name, tensor in tensors.items():
            full = whole(tensor.detach())
            if self.main:
                found[name] = full.to("cpu") if place is None else place(name, full).copy_(full)
        return found

    def give(self, source: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
        """The main process's `source[name]` in every process, laid out and placed like `like`."""
        full = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        if self.main:
            full.copy_(source[name])
        if self.world > 1:
            shared = full.to(self.device)
            dist.broadcast(shared, 0)
            full = shared.to(like.device)
        return laid_out_like(full, like)

    def lost(self, error: BaseException) -> bool:
        """Whether an error says that another process is gone."""
        words = ("gloo", "nccl", "connection", "timed out", "peer")
        return self.world > 1 and isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)

    def settle(self) -> None:
        """Wait for the accelerator, so that a clock tells the truth."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def keep_pages() -> None:
    """Let glibc keep freed memory for the next step: returning it costs a page fault for every 4 KiB of activations and
    gradients again. For a process that does nothing but train: it holds on to its largest memory. Other C libraries are
    left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)


def _regions(net: DiT) -> list[nn.Module]:
    """What is compiled, recomputed or sharded as one: each block, and the experts before it."""
    experts = [cast(nn.Module, r.experts) for r in net.routers] if isinstance(net, SwitchDiT) else []
    return [*net.blocks, *experts]


def _shard(objective: Objective, parts: Sequence[nn.Module], device: torch.device, dtype: torch.dtype) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # blocks travel in the precision that they compute in; their inputs, and all outside them, stay float32
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in parts:
        fully_shard(part, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh)


def _accelerator(cpu: bool, out: Path, trackers: Sequence[str] | None) -> Accelerator:
    try:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs, LoggerType, ProjectConfiguration
    except ImportError:
        raise MissingExtraError("accelerate", "train") from None
    if trackers is None:
        trackers = ["tensorboard"] if _installed("tensorboard") else []
    known = [str(name) for name in LoggerType.list() if str(name) != "all"]
    for name in trackers:
        if name not in known:
            raise HemstitchError(f"a tracker is one of accelerate's, {', '.join(known)}, not {name!r}")
        if not _installed(name):
            raise HemstitchError(f"the tracker {name} is not installed: pip install {name.replace('_', '-')}")
    try:
        return Accelerator(
            mixed_precision="no",  # the recipe's precision is applied here, not by the launcher
            cpu=cpu,
            log_with=list(trackers) or None,
            project_config=ProjectConfiguration(str(out), logging_dir=str(out / "trackers")),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=10))],
        )
    except ValueError as error:  # accelerate holds one device per process
        raise HemstitchError(f"this process has trained on another device: {error}") from None


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None
