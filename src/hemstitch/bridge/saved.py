"""Stitched models on disk: each member as diffusers saves it, and one file with the route."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from ..errors import StitchError
from ..files import read_json_file, write_text
from ..process import Process
from .convert import Adapter
from .members import plain
from .route import Choice, Route

CONFIG = "config.json"
FORMAT = 1
_WEIGHTS = tuple(
    f"diffusion_pytorch_model.{ending}" for ending in ("safetensors", "safetensors.index.json", "bin", "bin.index.json")
)
_OPTIONS = ("dtype", "torch_dtype", "variant", "use_safetensors", "low_cpu_mem_usage", "disable_mmap", "token")


def save_member(folder: Path, i: int, member: Any, **more: Any) -> list[str]:
    """Write a member into its own folder; [library, class], by which it is found again.

    The folders have a dot in their name: diffusers splits those of a component at it.
    """
    member = plain(member)
    member.save_pretrained(folder / f"member.{i}", **more)
    return [type(member).__module__.split(".")[0], type(member).__name__]


def write_route(folder: Path, names: list[str], classes: list[list[str]], model: Any) -> None:
    data = {
        "_class_name": "StitchedModel",
        "format": FORMAT,
        "members": [
            {"name": name, "library": library, "class": cls}
            for name, (library, cls) in zip(names, classes, strict=True)
        ],
        "choice": model.route.choice.to_data(),
        "keep": model.keep,
        "dropped": model.dropped,
        "adapters": {name: asdict(adapter) for name, adapter in model.adapters.items()},
    }
    write_text(folder / CONFIG, json.dumps(data, indent=2) + "\n")


def read(folder: Path, **more: Any) -> tuple[dict[str, Any], Route, dict[str, Any]]:
    """(members, route, the other arguments of StitchedModel) of a folder that `save_pretrained` wrote.

    more: of from_pretrained's options, those that the members' own take. Raises StitchError for a folder that is none.
    """
    if not (folder / CONFIG).is_file():
        raise StitchError(f"{folder} holds no {CONFIG}: a stitched model is saved by its save_pretrained")
    data = read_json_file(folder / CONFIG)
    if data.get("_class_name") != "StitchedModel" or data.get("format") != FORMAT:
        raise StitchError(f"{folder / CONFIG} is not that of a stitched model, or of a newer version")
    options = {k: v for k, v in more.items() if k in _OPTIONS and v is not None}
    try:
        members = {}
        for i, said in enumerate(data["members"]):
            where = folder / f"member.{i}"
            if not where.is_dir():
                raise StitchError(f"{where} is missing: the folder of a stitched model is incomplete")
            found = _model_class(said["library"], said["class"])
            members[str(said["name"])] = found.from_pretrained(where, **options, **_variant(where, options))
        adapters = {str(name): _adapter(values) for name, values in data["adapters"].items()}
        kept = {"keep": str(data["keep"]), "dropped": [str(name) for name in data["dropped"]], "adapters": adapters}
        names = list(members)
        classes = {type(member) for member in members.values()}
        if len(names) < len(data["members"]) or len(names) < 2 or len(classes) > 1:
            raise StitchError(f"{folder / CONFIG} is damaged: its members are {', '.join(names) or 'none'}")
        return members, Route(names, Choice.from_data(names, data["choice"])), kept
    except StitchError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StitchError(f"{folder / CONFIG} is damaged: {error!r}") from None


def _model_class(library: str, name: str) -> Any:
    """A class that is imported already: nothing is imported because a file says so."""
    found = getattr(sys.modules.get(library), name, None)
    if not (isinstance(found, type) and issubclass(found, ModelMixin)):
        raise StitchError(f"{library}.{name} is not a diffusers model class at hand: import {library} first")
    return found


def _variant(folder: Path, options: Mapping[str, Any]) -> dict[str, str]:
    """The variant of a member's files. diffusers looks for a component's in its own folder, finds none, passes none."""
    if "variant" in options or any((folder / name).exists() for name in _WEIGHTS):
        return {}
    for file in sorted(folder.glob("diffusion_pytorch_model.*")):
        parts = file.name.split(".")
        if len(parts) > 2 and parts[1] != "safetensors":
            return {"variant": parts[1].split("-")[0]}
    return {}


def _adapter(values: Mapping[str, Any]) -> Adapter:
    theirs = values["theirs"]
    return Adapter(**{**values, "theirs": None if theirs is None else Process(**theirs)})
