"""Sample into a folder, shard by shard: a generator that writes and yields how far it is.

A shard's files come first, then a note beside them that says what they are; `manifest.json` comes last. Whatever is
killed in between, the same call finds which shards are sound, makes the others, and ends in the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
import torch
from torch import Tensor

from ..autoencoder import Decoder
from ..data.dataset import restored
from ..denoiser import Denoiser
from ..errors import HemstitchError
from ..evaluate import pictures
from ..evaluate.extractors import Extractor
from ..files import discard, write_atomic, write_bytes, write_text
from ..identity import identity
from ..provenance import provenance
from ..sampling import Look, generate, prepare
from ..share import Pace, Place, Progress, await_file, gather, place, present
from .formats import FORMATS, Batch, Features, File, Folder, Format, Latents
from .manifest import MANIFEST, SETTINGS, Note, files_of_the_whole, labels_hash, settings_of_notes, sound
from .settings import VERSION, Quantise, Settings, chosen_labels, to_pixels

_SHOWN = 100  # samples in that picture at most


@dataclass(frozen=True)
class Source:
    """Where shards come from. labels: (count,) or None."""

    model: Denoiser
    settings: Settings
    labels: Tensor | None
    decode: Decoder | None
    look: Look

    def batch(self, index: Sequence[int]) -> Batch:
        """The samples of these indices. Fewer than a batch are filled up, so that shapes, and with them the rounding of
        kernels, are always the same."""
        settings = self.settings
        full = [*index, *[index[-1]] * (settings.batch - len(index))]
        labels = None if self.labels is None else self.labels[torch.tensor(full)]
        try:
            samples = generate(self.model, labels, num=None, seeds=[(settings.seed, i) for i in full], **self.look)
            bad = (~samples.isfinite()).flatten(1).any(1).nonzero()
            if len(bad):
                raise HemstitchError(
                    f"sample {full[int(bad[0])]} is not finite: less guidance, more steps, or another sampler"
                )
            pixels = self._pixels(samples)
        except torch.OutOfMemoryError as error:
            raise HemstitchError(f"the device has no room for {len(full)} samples at a time: lower batch") from error
        n = len(index)
        return Batch(samples[:n], None if pixels is None else pixels[:n])

    def _pixels(self, samples: Tensor) -> Tensor | None:
        if not self.settings.quantise:
            return None
        if self.decode is not None:
            images = self.decode(samples)
        else:
            images = restored(samples, self.model.spec.mean, self.model.spec.std)
        return to_pixels(images, cast(Quantise, self.settings.quantise)).cpu()


def write_samples(
    model: Denoiser,
    out: Path,
    *,
    count: int,
    labels: str | Sequence[int] | Tensor | None = None,
    seed: int = 0,
    batch: int | None = None,
    per_shard: int | None = None,
    formats: Sequence[str] | None = None,
    decode: Decoder | None = None,
    quantise: Quantise | None = None,
    extractors: Sequence[Extractor] = (),
    patience: float = 600.0,
    **look: Unpack[Look],
) -> Iterator[Progress]:
    """Write `count` samples into the folder `out`. Sample i depends on (seed, i) and its label alone.

    labels: "balanced" (also None), "random", or numbers, repeated as needed. batch: samples at a time (64, or count if
    that is less); with the same batch files are the same to the byte, with another one the samples are equal up to the
    rounding of kernels. What is less than a batch is filled up.
    per_shard: samples in a unit of work, a multiple of batch; by default 16 batches. At most two are held in memory.
    formats: some of `FORMATS`; by default "png", "latents" where samples are no pictures, and "features" if
    extractors are given. decode: makes pictures of latents. quantise: "floor" as the ADM evaluation quantises pixel
    models' samples (their default) or "round" as DiT's does decoded ones (theirs). extractors: whose features are
    kept. The rest is a `Look`.

    Called again with the same settings it keeps the shards that are sound and writes those that are missing or
    damaged; with others it raises. RANK and WORLD_SIZE, as torchrun and accelerate launch set them, make process r
    write the shards r, r + W, …; process 0 then waits for the others and writes `manifest.json`. It gives up when for
    `patience` seconds no new shard has appeared and no other process has shown that it lives.

    Raises HemstitchError for settings that do not fit or differ from the folder's, and when the disk is full: finished
    shards stay. Arguments are checked when the first value is asked for.
    """
    batch = min(64, max(1, count)) if batch is None else batch
    if Path(out).exists() and not Path(out).is_dir():
        raise HemstitchError(f"{out} is a file: give a folder to write samples to")
    source = _source(model, count, labels, seed, batch, per_shard, formats, decode, quantise, extractors, dict(look))
    settings, here, out = source.settings, place(), Path(out)
    folder = Folder(out, settings, source.labels)
    kept_as = [_format(name, folder, extractors) for name in settings.formats]
    with present(out / "manifest", here):
        _begin(out, settings, here, patience)
        yield from _shards(source, kept_as, folder, here, patience)


def _shards(
    source: Source, kept_as: Sequence[Format], folder: Folder, here: Place, patience: float
) -> Iterator[Progress]:
    """Write those of this process that are missing; process 0 then waits for the others', and finishes."""
    out, settings = folder.out, folder.settings
    share = here.share(settings.shards)
    look_for = partial(sound, out, settings, kept_as)
    notes = look_for(share)
    missing = [k for k in share if k not in notes]
    if missing:
        (out / MANIFEST).unlink(missing_ok=True)  # it is of files that are about to be replaced
    pace = Pace(_images(settings, share), _images(settings, notes))
    for k, note, images in _written(source, kept_as, out, missing):
        if note is not None:
            notes[k] = note
        pace.add(images)
        yield pace.read(None if note is None else Note.path(out, k))
    if here.rank == 0:
        name = "shard {}".format
        for waiting in gather(settings.shards, notes, look_for, patience, out, name, out / "manifest", here):
            yield pace.read(waiting=waiting)
        _finish(out, folder, kept_as, [notes[k] for k in range(settings.shards)])
    yield pace.read()


def _source(
    model: Denoiser,
    count: int,
    labels: str | Sequence[int] | Tensor | None,
    seed: int,
    batch: int,
    per_shard: int | None,
    formats: Sequence[str] | None,
    decode: Decoder | None,
    quantise: Quantise | None,
    extractors: Sequence[Extractor],
    look: dict[str, Any],
) -> Source:
    """The arguments, checked."""
    if count < 1 or batch < 1:
        raise HemstitchError(f"count and batch are at least 1, not {count} and {batch}")
    if per_shard is None:
        per_shard = 16 * batch
    if per_shard < 1 or (per_shard % batch and per_shard < count):
        below = max(1, per_shard // batch) * batch
        raise HemstitchError(f"per_shard is a multiple of the batch of {batch}, as {below}, not {per_shard}")
    spec = model.spec
    is_picture = decode is not None or spec.channels in (1, 3)
    if formats is None:
        formats = ["features"] if extractors else ["png"] if is_picture else ["latents"]
    wrong = [name for name in formats if name not in FORMATS]
    if wrong or not formats or len(set(formats)) < len(formats):
        raise HemstitchError(f"formats are some of {', '.join(FORMATS)}, each once; not {', '.join(formats) or 'none'}")
    if not is_picture and any(FORMATS[name] is not Latents for name in formats):
        raise HemstitchError(
            f"samples of {spec.channels} channels are latents, not pictures: decode them (--vae FOLDER), or --format "
            "latents"
        )
    if ("features" in formats) != bool(extractors):
        raise HemstitchError('extractors and the format "features" go together')
    if isinstance(look.get("guidance", 1.0), Tensor | Sequence):
        raise HemstitchError("here one guidance is for all samples: give a number")
    chosen = chosen_labels(labels, spec.num_classes, count, seed)
    job = prepare(model, None if chosen is None else chosen[:1], num=1, **look)  # every option, checked
    settings = Settings(
        version=VERSION,
        model=identity(model),
        sampler=repr(job.sampler),
        steps=int(job.state.levels.count[0]),
        guidance=_told(look.get("guidance", 1.0)),
        guidance_channels=look.get("guidance_channels"),
        guidance_interval=look.get("guidance_interval"),
        grid=_told(look.get("grid", "released")),
        seed=seed,
        count=count,
        labels=labels_hash(chosen),
        batch=batch,
        per_shard=per_shard,
        channels=spec.channels if decode is None or decode.autoencoder.channels is None else 3,
        size=spec.size if decode is None else decode.size(spec.size),
        decoder="" if decode is None else decode.told,
        quantise=(quantise or ("floor" if decode is None else "round")) if is_picture else "",
        formats=tuple(formats),
        extractors=tuple((e.name, e.version, e.hash) for e in extractors),
    )
    if settings.quantise:
        to_pixels(torch.zeros(1), cast(Quantise, settings.quantise))
    return Source(model, settings, chosen, decode, cast(Look, look))


def _told(value: object) -> str:
    """An option as a text that tells it from others."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return f"{float(value):.9g}"
    return repr(torch.as_tensor(value).tolist()) if isinstance(value, Tensor | Sequence) else repr(value)


def _format(name: str, folder: Folder, extractors: Sequence[Extractor]) -> Format:
    made = FORMATS[name](folder)
    if isinstance(made, Features):
        made.extractors = extractors
    return made


def _begin(out: Path, settings: Settings, here: Place, patience: float) -> None:
    """Make the folder one of these settings, or find that it is another's. Leftovers of killed writes go."""
    path = out / SETTINGS
    if here.rank == 0 and _unsaid(path, settings):
        digests = settings_of_notes(out)  # of shards that are there, though what decides them is lost
        is_ours = digests <= {settings.digest} and (path.exists() or bool(digests))
        if not is_ours and any(not p.name.startswith(".") and p.name != "manifest" for p in out.iterdir()):
            raise HemstitchError(
                f"{out} is not empty and holds no samples of this kind: choose another --out, or go on with the very "
                "settings that it was begun with"
            )
        try:
            write_text(path, settings.to_json())
        except OSError as error:
            raise _unwritten(path, error) from error
    await_file(path, patience)
    try:
        there = Settings.read(path)
    except HemstitchError as error:
        raise HemstitchError(f"{path} does not say how the samples here were made: {error}") from None
    differing = there.difference(settings)
    if differing:
        keeps = [d for d in differing if d.split()[0] not in ("formats", "extractors")]
        fix = "Choose another --out, or remove that one" if keeps else "To measure what is there: hemstitch evaluate"
        raise HemstitchError(f"{out} holds samples made otherwise. There and now: {'; '.join(differing)}. {fix}")
    for leftover in out.rglob(".*.tmp"):
        of_shard = re.match(r"\.(?:shard-|latents-)?(\d{5,})\.", leftover.name)
        if (int(of_shard[1]) % here.world if of_shard else 0) == here.rank:
            discard(leftover)


def _unsaid(path: Path, settings: Settings) -> bool:
    """Whether the file of settings is missing or damaged."""
    try:
        return not path.exists() or Settings.read(path) is None
    except HemstitchError:
        return True


def _images(settings: Settings, shards: Collection[int]) -> int:
    return sum(len(settings.rows(k)) for k in shards)


def _written(
    source: Source, kept_as: Sequence[Format], out: Path, shards: Sequence[int]
) -> Iterator[tuple[int, Note | None, int]]:
    """Sample these shards and write each while the next is sampled: (shard, its note once written, images sampled)."""
    with ThreadPoolExecutor(1) as pool:
        pending: tuple[int, Future[Note]] | None = None
        for k in shards:
            rows = source.settings.rows(k)
            kept: list[list[Any]] = [[] for _ in kept_as]
            shown: list[Tensor] = []
            digest = hashlib.sha256()
            for start in range(0, len(rows), source.settings.batch):
                index = rows[start : start + source.settings.batch]
                batch = source.batch(index)
                what = batch.samples.cpu() if batch.pixels is None else batch.pixels.permute(0, 2, 3, 1)
                digest.update(np.ascontiguousarray(what.numpy()).data)
                for kept_one, parts in zip(kept_as, kept, strict=True):
                    parts.append(kept_one.taken(batch))
                if k == 0 and batch.pixels is not None and len(shown) < _SHOWN:
                    shown += list(batch.pixels[: _SHOWN - len(shown)])
                yield k, None, len(index)
            if pending is not None:
                yield pending[0], pending[1].result(), 0
            write = partial(_write, source, kept_as, out, k, kept, shown, digest.hexdigest())
            pending = k, pool.submit(write)
            del kept, shown
        if pending is not None:
            yield pending[0], pending[1].result(), 0


def _write(
    source: Source,
    kept_as: Sequence[Format],
    out: Path,
    k: int,
    kept: list[list[Any]],
    shown: list[Tensor],
    content: str,
) -> Note:
    """Write a shard's files, then the note that says so."""
    rows = source.settings.rows(k)
    files: dict[str, File] = {}
    try:
        for kept_one, parts in zip(kept_as, kept, strict=True):
            files |= kept_one.write(k, rows, parts)
        if shown:
            _show(out, _sheet(torch.stack(shown), source.labels))
        note = Note(source.settings.digest, content, files, provenance(source.model.device))
        write_text(Note.path(out, k), note.to_json())
    except OSError as error:
        raise _unwritten(Note.path(out, k), error) from error
    return note


def _show(out: Path, sheet: bytes) -> None:
    """Write the picture of the first samples; samples do not fail for it."""
    try:
        write_bytes(sheet_of(out), sheet)
    except OSError as error:
        warnings.warn(f"the picture of the first samples could not be written: {error}", stacklevel=2)


def sheet_of(out: Path) -> Path:
    """Where a picture of the first samples goes: beside the folder, for whoever measures that takes every picture in it
    for a sample."""
    whole = out.resolve()
    return whole.with_name(f"{whole.name}-grid.png")


def _sheet(shown: Tensor, labels: Tensor | None) -> bytes:
    """The first samples as one picture, a column per class where the classes come in turn."""
    classes = 0 if labels is None else int(labels.max()) + 1
    columns = classes if 1 < classes <= 20 else 10
    images = shown.float() / 127.5 - 1
    return pictures.png(pictures.grid(images, min(columns, len(shown))), scale=max(1, 64 // shown.shape[-1]))


def _finish(out: Path, folder: Folder, kept_as: Sequence[Format], notes: list[Note]) -> None:
    """The files of the whole, the labels, and the manifest."""
    files: dict[str, File] = {}
    before = files_of_the_whole(out)
    try:
        for kept_one in kept_as:
            files |= kept_one.finish(before)
        if folder.labels is not None:
            write_atomic(out / "labels.npy", partial(_save, folder.labels.numpy()))
        contents = "".join(note.content for note in notes)
        data = {
            "settings": asdict(folder.settings),
            "content": hashlib.sha256(contents.encode()).hexdigest(),
            "files": files,
            "shards": [{"files": list(note.files), "content": note.content} for note in notes],
            "provenance": [
                dict(p) for p in dict.fromkeys(tuple(sorted(_lasting(n.provenance).items())) for n in notes)
            ],
        }
        write_text(out / MANIFEST, json.dumps(data, indent=1))
    except OSError as error:
        raise _unwritten(out / MANIFEST, error) from error


def _lasting(told: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in told.items() if name != "date"}


def _save(array: np.ndarray, aside: Path) -> None:
    with aside.open("wb") as stream:
        np.save(stream, array)


def _unwritten(path: Path, error: OSError) -> HemstitchError:
    return HemstitchError(
        f"{path} could not be written ({error}); finished shards stay. Make room and run the same again, which goes on "
        "from there"
    )
