"""Part E: what becomes of the packages of pictures, what is held out, and how plans are held against one another.

Packages here are made up: a few characters, drawn as coloured squares.
"""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hemstitch.data import Arrays
from hemstitch.errors import HemstitchError
from reproduction import colour, emoji
from reproduction.fields import Field

PER_CATEGORY = 6


def png(seed, transparent=False):
    """Sixteen squares of colour; the upper half may be transparent black."""
    squares = np.random.default_rng(seed).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    squares[..., 3] = 255
    if transparent:
        squares[:2] = 0
    file = io.BytesIO()
    Image.fromarray(squares.repeat(16, 0).repeat(16, 1)).save(file, "png")
    return file.getvalue()


def entry(code, category, **more):
    return {"unified": code, "image": f"{code.lower()}.png", "category": category, **more}


def package(folder, one, characters, pictures):
    files = {f"package/img/{one.vendor}/64/{name}": data for name, data in pictures.items()}
    files["package/emoji.json"] = json.dumps(characters).encode()
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / one.file, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder with the four packages: 6 characters of each category, drawn anew by each, and 5 pictures to hold out:
    of the second character that is held out, three drawings are too many."""
    monkeypatch.setattr(emoji, "HELD", 5)
    characters = [
        entry(f"{16 * i + k:04X}-FE0F", group[k % len(group)])
        for i, group in enumerate(emoji.CATEGORIES, 1)
        for k in range(PER_CATEGORY)
    ]
    characters += [entry("AAAA", "Component"), entry("BBBB", "Symbols", obsoleted_by="0071")]
    characters[0]["skin_variations"] = {"1F3FB": {"image": "skin.png"}}
    for number, one in enumerate(emoji.DRAWINGS):
        pictures = {c["image"]: png(1000 * number + i) for i, c in enumerate(characters)}
        pictures["skin.png"] = png(number)
        other = {"category": "as older lists have it"} if number else {}
        theirs = [{**c, "unified": c["unified"][: 4 if number else None], **other} for c in characters]
        package(tmp_path / "emoji", one, theirs, pictures)
    return tmp_path / "emoji"


def test_characters_that_differ_by_gender_age_or_direction_are_kin():
    assert emoji.kin("1F468-200D-1F4BB") == emoji.kin("1F469-200D-1F4BB") == emoji.kin("1F9D1-200D-1F4BB")
    assert emoji.kin("1F468-200D-1F4BB") != emoji.kin("1F468-200D-1F52C")
    assert emoji.kin("1F3C3-200D-2640-200D-27A1") == emoji.kin("1F3C3")
    assert emoji.kin("1F468-200D-1F469-200D-1F467") == emoji.kin("1F466") == "person"
    # flags are pairs of letters, of which order and repetition count; the sign for female is a character itself
    assert emoji.kin("1F1E8-1F1EE") != emoji.kin("1F1EE-1F1E8")
    assert emoji.kin("1F1E8-1F1E8") != emoji.kin("1F1E8-1F1EE")
    assert emoji.kin("2640") == "2640"


def test_whole_characters_are_held_out_as_many_of_each_category(packages):
    told = emoji.prepare(packages)
    train, held = (np.load(path) for path in emoji.paths(packages))
    assert np.bincount(held["labels"]).tolist() == [5] * 8
    assert not set(train["kin"]) & set(held["kin"])
    # two characters away, of which one lacks three of its four pictures, that are in neither part
    assert np.bincount(train["labels"]).tolist() == [4 * (PER_CATEGORY - 2)] * 8
    assert told["emoji-held"]["pictures"] == 40
    assert sum(told["emoji-train"]["by_category"].values()) == told["emoji-train"]["pictures"] == len(train["images"])
    assert told["emoji-train"]["characters"] == 8 * (PER_CATEGORY - 2)
    data = Arrays(emoji.paths(packages)[0], 32)
    assert (len(data), data.channels, len(data.classes)) == (128, 3, 8)


def test_what_is_held_out_does_not_hang_on_the_order_of_pictures(packages):
    every = [p for found in emoji.drawn([packages / one.file for one in emoji.DRAWINGS]) for p in found]
    _, held = emoji.split(every)
    _, other = emoji.split(every[::-1])
    assert {p.kin for p in held} == {p.kin for p in other}
    with pytest.raises(HemstitchError, match="5 pictures of Smileys & Emotion: more than 5"):
        emoji.split(every[:5])


def test_packages_are_fetched_once_and_cut_out_once(packages, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("npm was called")

    monkeypatch.setattr(subprocess, "run", refuse)
    told = emoji.prepare(packages)
    for one in emoji.DRAWINGS:
        (packages / one.file).unlink()
    assert emoji.prepare(packages) == told


def test_what_npm_packs_is_kept_and_nothing_else(tmp_path, monkeypatch):
    one = emoji.DRAWINGS[0]

    def npm(command, cwd, **_):
        assert command == ["npm", "pack", "--silent", "emoji-datasource-google@16.0.0"]
        (Path(cwd) / one.file).write_bytes(b"a package")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", npm)
    assert emoji.download(one, tmp_path).read_bytes() == b"a package"
    assert [path.name for path in tmp_path.iterdir()] == [one.file]


def test_without_npm_the_error_says_what_to_bring(tmp_path, monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("npm")

    monkeypatch.setattr(subprocess, "run", missing)
    with pytest.raises(HemstitchError, match=r"apt install npm.*npm pack emoji-datasource-google@16\.0\.0"):
        emoji.download(emoji.DRAWINGS[0], tmp_path)
    failed = subprocess.CompletedProcess([], 1, "", "no such version\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(HemstitchError, match=r"failed \(no such version\)"):
        emoji.download(emoji.DRAWINGS[0], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_package_is_named(packages):
    path = packages / emoji.DRAWINGS[1].file
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(HemstitchError, match=r"emoji-datasource-twitter-16.0.0.tgz cannot be read .* remove it"):
        emoji.prepare(packages)


def test_the_transparent_is_white_and_squares_of_pixels_are_averaged():
    pixels = emoji.on_white(png(3, transparent=True))
    assert pixels.shape == (32, 32, 3)
    assert (pixels[:16] == 255).all()
    fine = np.zeros((64, 64, 4), np.uint8)
    fine[..., 3], fine[::2, ::2, 0] = 255, 200
    file = io.BytesIO()
    Image.fromarray(fine).save(file, "png")
    assert (emoji.on_white(file.getvalue())[..., 0] == 50).all()


def test_near_copies_of_what_is_kept_are_left_out_and_theirs_are_not():
    def grey(value):
        return emoji.Picture(str(value), 0, np.full((32, 32, 3), value, np.uint8))

    # 12.75 of 255 is near: 110 goes for 100, and so 120 has nothing near it
    every = [grey(value) for value in (100, 110, 120, 100, 200)]
    assert [picture.kin for picture in emoji.distinct(every)] == ["100", "120", "200"]
    many = [grey(value) for value in (0, 255)] * 600  # more than are compared at once
    assert len(emoji.distinct(many)) == 2


def pictures_at(path, images, labels):
    np.savez(path, images=images, labels=labels)
    return Arrays(path, 32)


def test_samples_that_repeat_what_was_learned_are_seen(tmp_path):
    """The held out are near those learned pictures that there are too many of."""
    x = np.random.default_rng(0).integers(40, 216, (16, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(16) % 8
    mine = colour.even(torch.from_numpy(labels), 1)
    assert labels[mine].tolist() == list(range(8))
    others = torch.tensor([i for i in range(16) if i not in mine])
    learned = pictures_at(tmp_path / "a.npz", x, labels)
    held = pictures_at(tmp_path / "b.npz", x[others] + np.uint8(25), labels[others])

    def shares(samples):
        return {name: score.value for name, score in colour.nearness(samples, learned, held).items()}

    assert shares(learned.images(mine)) == {"near_copies": 1, "nearer_learned": 1}
    assert shares(learned.images(others)) == {"near_copies": 1, "nearer_learned": 0}
    # a twentieth of the range is near
    assert shares(learned.images(mine) + 0.09) == {"near_copies": 1, "nearer_learned": 1}
    assert shares(learned.images(mine) + 0.11) == {"near_copies": 0, "nearer_learned": 1}


@pytest.fixture
def field(packages):
    emoji.prepare(packages)
    field = colour.pictures(packages.parent)
    return Field(
        field.name, field.folder, field.train, field.test, field.reference, classifier_steps=2, shape=field.shape
    )


def test_tasks_are_listed_without_pictures_and_hang_together(tmp_path):
    tasks = colour.tasks(tmp_path)
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names)
    assert {need for task in tasks for need in task.needs} <= set(names)
    assert all(name.startswith("colour/") for name in names)
    assert not list(tmp_path.iterdir())


def test_families_differ_in_nothing_but_the_family(field):
    one, other = colour.recipe(field, "dit", 0), colour.recipe(field, "switch_dit", 0)
    assert set(one.difference(other)) == {"name", "net.family"}
    assert (one.net.channels, one.net.input_size, one.net.num_classes) == (3, 32, 8)
    assert not [mark for mark in colour.MARKS if mark % one.train.checkpoint_every]  # all of them are kept
    assert colour.MARKS[-1] == one.train.steps


def test_training_pictures_are_judged_with_as_many_of_each_class(field, monkeypatch):
    seen = []
    monkeypatch.setattr(Field, "scores", lambda self, rows, labels: seen.append(labels) or {})
    colour.prepare(field)
    assert torch.bincount(seen[-1]).tolist() == [5] * 8
