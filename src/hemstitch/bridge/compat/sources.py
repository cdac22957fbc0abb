"""Where configurations are read from: folders, hub ids, live pipelines and modules. JSON only, never weights.

Nothing that is read is executed or unpickled. Files are bounded in size, and damaged ones are errors that name them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import HemstitchError, MissingExtraError
from ...files import read_json_file
from .findings import text

MOST_BYTES = 4 << 20  # of a JSON file; the largest known model_index.json has 60 KB
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DENOISERS = ("unet", "transformer", "transformer_2")
_NO_DENOISER = re.compile(
    r"(Asymmetric)?Autoencoder|VQModel|Consistency|T2IAdapter|.*(ControlNet|Scheduler$|Pipeline$)"
)

Read = Callable[[str], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Side:
    """One of the two things compared.

    denoiser: its configuration. index: the pipeline's (model_index.json), empty for a lone denoiser. read: gives a
    component's configuration, or None. folder: where it is on disk.
    """

    name: str
    denoiser: Mapping[str, Any]
    index: Mapping[str, Any]
    read: Read
    folder: Path | None = None

    @property
    def lone(self) -> bool:
        return not self.index

    def component_class(self, component: str) -> str | None:
        """The class of a component of the pipeline, None where it has none."""
        entry: Any = self.index.get(component)
        return str(entry[1]) if _filled(entry) else None

    def config(self, component: str) -> Mapping[str, Any] | None:
        """A component's configuration with its class, None where there is none."""
        name = self.component_class(component)
        config = None if name is None else self.read(component)
        return None if config is None else {"_class_name": name, **config}


def side_of(given: Any, subfolder: str | None = None) -> Side:
    """A path, hub id, live pipeline or module, as a Side.

    Raises HemstitchError, saying what was looked for, if it is none of these or holds no denoiser.
    """
    if isinstance(given, str | Path):
        root = Path(given)
        if given == "":
            raise HemstitchError("expected a folder or a hub id (owner/name), got an empty name")
        if root.is_dir():
            return _stored(str(given), lambda name: root / name if (root / name).exists() else None, subfolder, root)
        if root.exists():
            raise HemstitchError(f"{given} is a file; expected the folder of a pipeline or of a denoiser")
        if isinstance(given, str) and _HUB_ID.fullmatch(given):
            return _stored(given, lambda name: _fetched(given, name), subfolder)
        raise HemstitchError(f"there is no folder {given}, and it is no hub id (owner/name)")
    if isinstance(getattr(given, "components", None), Mapping):
        return _live_pipeline(given, subfolder)
    config = _live_config(given)
    if config is None:
        raise HemstitchError(f"expected a path, a hub id, or a diffusers pipeline or model; got {type(given).__name__}")
    return Side(type(given).__name__, _denoiser(config, type(given).__name__), {}, lambda component: None)


def _stored(name: str, find: Callable[[str], Path | None], subfolder: str | None, root: Path | None = None) -> Side:
    def read(component: str) -> Mapping[str, Any] | None:
        file = "scheduler_config.json" if component == "scheduler" else "config.json"
        path = find(f"{component}/{file}")
        return None if path is None else _json(path)

    if (path := find("model_index.json")) is not None:
        index = _json(path)
        component = _component(name, index, subfolder)
        config = read(component)
        if config is None:
            raise HemstitchError(f"{name} has no {component}/config.json: the download may be incomplete")
        if config.get("_class_name") == "StitchedModel" and isinstance(config.get("members"), list):
            config = read(f"{component}/member.{len(config['members']) - 1}") or config  # the pipeline's own
        return Side(name, _denoiser(config, f"{name}/{component}"), index, read, root)
    for file in ([f"{subfolder}/config.json"] if subfolder else []) + ["config.json"]:
        if (path := find(file)) is not None:
            return Side(name, _denoiser(_json(path), f"{name}/{file}"), {}, lambda component: None, root)
    raise HemstitchError(
        f"{name} holds neither model_index.json (a pipeline) nor config.json (a denoiser); "
        "name the folder inside it with subfolder, such as unet"
    )


def _component(name: str, index: Mapping[str, Any], subfolder: str | None) -> str:
    have = [c for c in ((subfolder,) if subfolder else _DENOISERS) if _filled(index.get(c))]
    if not have:
        parts = text([c for c, entry in index.items() if _filled(entry)]) or "nothing"
        raise HemstitchError(
            f"{name} has no {subfolder or 'unet or transformer'} (it has {parts}): name its denoiser with subfolder"
        )
    return have[0]


def _filled(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], str)


def _live_pipeline(pipe: Any, subfolder: str | None) -> Side:
    components = {k: v for k, v in pipe.components.items() if v is not None}
    index = {**dict(pipe.config), **{k: (type(v).__module__, type(v).__name__) for k, v in components.items()}}
    index = {k: v for k, v in index.items() if k in components or not _filled(v)}
    name = type(pipe).__name__
    component = _component(name, index, subfolder)
    config = _live_config(components[component])
    if config is None:
        raise HemstitchError(f"the {component} of {name} is a {type(components[component]).__name__} without a config")
    return Side(name, _denoiser(config, name), index, lambda c: _live_config(components.get(c)))


def _live_config(module: Any) -> dict[str, Any] | None:
    """The configuration of a diffusers or transformers module, of the last member where it is a stitched one."""
    module = getattr(module, "_orig_mod", module)  # torch.compile's
    members = getattr(module, "members", None)
    if isinstance(members, Mapping) and members:
        module = getattr(list(members.values())[-1], "_orig_mod", list(members.values())[-1])
    config: Any = getattr(module, "config", None)
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        return None
    return {"_class_name": type(module).__name__, **config}


def _denoiser(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    name = config.get("_class_name")
    if not isinstance(name, str) or _NO_DENOISER.match(name):
        came = f"a {text(name)}" if isinstance(name, str) else "a configuration without _class_name"
        raise HemstitchError(f"{where} is {came}; expected a diffusers denoiser (a U-Net or transformer)")
    return config


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise HemstitchError(f"{path} is not a file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise HemstitchError(f"{path} has {size:,} bytes; a configuration has at most {MOST_BYTES:,}: this is none")
    try:
        return read_json_file(path)
    except HemstitchError:
        raise
    except (RecursionError, ValueError) as error:  # nested or numbers beyond what Python reads
        raise HemstitchError(f"{path} cannot be read as JSON: {error}") from None


def _fetched(repo: str, name: str) -> Path | None:
    """A small file of a hub repository, None if the repository has none of that name."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError:
        raise MissingExtraError("huggingface_hub", "diffusers") from None
    try:
        return Path(hf_hub_download(repo, name))
    except LocalEntryNotFoundError as error:  # offline and not in the cache; a kind of the next
        raise HemstitchError(f"there is no folder {repo}, and the hub cannot be asked: {error}") from None
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HemstitchError(f"there is no folder {repo}, and the hub gave none: {said}") from None


def same_weights(small: Path, large: Path) -> bool | None:
    """Whether two folders hold the same weights, by sha256 of the files of equal names; None if there are none."""
    if not (small.is_dir() and large.is_dir()):
        return None
    names = [p.name for p in small.glob("*.safetensors")] or [p.name for p in small.glob("*.bin")]
    pairs = [(small / n, large / n) for n in sorted(names) if (large / n).is_file()]
    if not pairs:
        return None
    return all(_same(a, b) for a, b in pairs)


def _same(a: Path, b: Path) -> bool:
    if a.samefile(b):
        return True
    return a.stat().st_size == b.stat().st_size and _digest(a) == _digest(b)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
