"""Shards of webdataset: what is found in a tar, in which order, and what damaged ones do."""

import gc
import io
import os
import pickle
import re
import signal
import tarfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from hemstitch.data import Shards, open_dataset
from hemstitch.data.decoded import pool
from hemstitch.data.shards import _DamageError, _expanded, _members
from hemstitch.errors import HemstitchError

SIDE = 8


def pixels(value, side=SIDE):
    """An image of noise whose first pixel tells which it is."""
    image = np.random.default_rng(value).integers(0, 256, (side, side, 3), dtype=np.uint8)
    image[0, 0] = value % 256
    return image


def png(value, side=SIDE):
    whole = io.BytesIO()
    Image.fromarray(pixels(value, side)).save(whole, "png")
    return whole.getvalue()


def tar(path, members, **options):
    """A tar of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def samples(first, count, classes=2):
    """Members of so many samples with labels: 000.png and 000.cls, and so on."""
    for i in range(first, first + count):
        yield f"{i:04}.png", png(i)
        yield f"{i:04}.cls", str(i % classes).encode()


def shards(folder, counts, classes=2):
    """imgs-0000.tar and so on with so many samples each, numbered through."""
    first = 0
    for i, count in enumerate(counts):
        tar(folder / f"imgs-{i:04}.tar", samples(first, count, classes))
        first += count
    return folder


def levels(data, index=None):
    """The first pixel of each image."""
    x0 = data.images(torch.arange(len(data)) if index is None else torch.tensor(index))
    return ((x0[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def cut(path, member, inside):
    """Cut a tar `inside` bytes into a member's content."""
    with tarfile.open(path) as file:
        info = file.getmember(member)
    os.truncate(path, info.offset_data + inside)


def header_of(path, member):
    with tarfile.open(path) as file:
        return file.getmember(member).offset


def spoil_header(path, member):
    """Write over a member's header. Gives where."""
    at = header_of(path, member)
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(b"no header at all" * 32)
    return at


def spoil_image(path, member):
    with tarfile.open(path) as file:
        info = file.getmember(member)
    with path.open("r+b") as stream:
        stream.seek(info.offset_data + info.size // 2)
        stream.write(bytes(info.size // 2))


class TestReading:
    def test_round_trip(self, tmp_path):
        data = Shards(shards(tmp_path / "pets", [3, 4, 2]), SIDE)
        assert (data.name, data.channels, data.size, data.flippable) == ("shards:pets", 3, SIDE, True)
        assert data.classes == ("0", "1")
        assert data.labels.dtype == torch.int64
        assert data.labels.tolist() == [i % 2 for i in range(9)]
        x0 = data.images(torch.arange(9))
        assert (x0.shape, x0.dtype, x0.is_contiguous()) == ((9, 3, SIDE, SIDE), torch.float32, True)
        expected = np.stack([pixels(i) for i in range(9)]).transpose(0, 3, 1, 2)
        assert np.array_equal(((x0 + 1) * 127.5).round().to(torch.uint8).numpy(), expected)
        assert data.broken == []

    def test_any_order_and_repeats(self, tmp_path):
        data = Shards(shards(tmp_path, [30, 30]), SIDE)
        index = [*torch.randperm(60, generator=torch.Generator().manual_seed(0)).tolist(), 5, 5, 59, -1]
        assert levels(data, index) == [i % 60 for i in index]
        assert data.images(torch.tensor([], dtype=torch.int64)).shape == (0, 3, SIDE, SIDE)

    def test_order_is_by_name_then_as_written(self, tmp_path):
        tar(tmp_path / "b.tar", [("z.png", png(1)), ("a.png", png(2))])
        tar(tmp_path / "a.tar", [("m.png", png(3))])
        tar(tmp_path / "B.tar", [("m.png", png(4))])
        for _ in range(3):
            assert levels(Shards(tmp_path, SIDE)) == [4, 3, 1, 2]

    def test_unlabelled(self, tmp_path):
        tar(tmp_path / "a.tar", [(f"{i}.png", png(i)) for i in range(3)])
        (tmp_path / "classes.txt").write_text("cat\n")
        data = Shards(tmp_path, SIDE)
        assert data.classes == ()
        assert data.labels.tolist() == [0, 0, 0]

    def test_labels_in_json(self, tmp_path):
        members = [("a.json", b'{"label": 2, "text": "x"}'), ("a.png", png(0)), ("b.png", png(1)), ("b.cls", b" 1\n")]
        members += [("b.json", b"not looked at")]
        data = Shards(tar(tmp_path / "x.tar", members), SIDE)
        assert data.labels.tolist() == [2, 1]
        assert data.classes == ("0", "1", "2")

    def test_json_without_a_label_is_none(self, tmp_path):
        data = Shards(tar(tmp_path / "x.tar", [("a.png", png(0)), ("a.json", b'{"text": "x"}')]), SIDE)
        assert data.classes == ()

    def test_names_up_to_the_first_dot_of_the_file(self, tmp_path):
        members = [
            ("./v1.0/a.png", png(0)),
            ("./v1.0/a.cls", b"0"),
            ("./v2.0/a.PNG", png(1)),
            ("./v2.0/a.cls", b"1"),
            ("./v2.0/a.mask.png", b"another kind of member"),
            ("./v2.0/a.txt", b"and another"),
            ("./v2.0/._a.png", b"hidden"),
            ("README.md", b"no sample"),
            ("about.json", b'{"made": "by hand"}'),
        ]
        data = Shards(tar(tmp_path / "x.tar", members), SIDE)
        assert levels(data) == [0, 1]
        assert data.labels.tolist() == [0, 1]

    def test_members_of_a_sample_need_not_be_neighbours(self, tmp_path):
        members = list(samples(0, 5, classes=5))
        data = Shards(tar(tmp_path / "x.tar", members[::2] + members[:0:-2]), SIDE)
        assert data.labels.tolist() == levels(data) == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("suffix", ["jpg", "JPEG", "webp", "png"])
    def test_formats(self, tmp_path, suffix):
        whole = io.BytesIO()
        Image.new("RGB", (20, 16), (200, 200, 200)).save(whole, suffix if suffix != "jpg" else "jpeg")
        data = Shards(tar(tmp_path / "x.tar", [(f"a.{suffix}", whole.getvalue())]), SIDE)
        assert abs(levels(data)[0] - 200) <= 1

    def test_names_of_classes(self, tmp_path):
        shards(tmp_path, [4])
        (tmp_path / "classes.txt").write_text("cat\nhot dog\nbird\n\n")
        assert Shards(tmp_path, SIDE).classes == ("cat", "hot dog", "bird")
        (tmp_path / "classes.txt").unlink()
        (tmp_path / "classes.json").write_text('["cat", "dog"]')
        assert Shards(tmp_path / "imgs-0000.tar", SIDE).classes == ("cat", "dog")

    def test_more_shards_than_stay_open(self, tmp_path, monkeypatch):
        monkeypatch.setattr("hemstitch.data.shards._KEPT_OPEN", 2)
        data = Shards(shards(tmp_path, [2] * 6), SIDE)
        assert levels(data) == levels(data) == list(range(12))
        assert len(data._files._open) == 2

    def test_files_are_closed_in_the_end(self, tmp_path):
        before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else pytest.skip("needs /proc")
        data = Shards(shards(tmp_path, [2] * 6), SIDE)
        levels(data)
        assert len(os.listdir("/proc/self/fd")) == before + 6
        del data
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before

    def test_travels_to_another_process(self, tmp_path):
        data = Shards(shards(tmp_path, [3, 3]), SIDE)
        levels(data)
        again = pickle.loads(pickle.dumps(data))
        assert levels(again) == levels(data)
        assert again.labels.equal(data.labels)

    def test_by_name(self, tmp_path):
        assert len(open_dataset("shards", str(shards(tmp_path, [2])), SIDE)) == 2


class TestPaths:
    def test_a_file_and_patterns(self, tmp_path):
        shards(tmp_path / "pets", [1, 2, 3, 4])
        for pattern, count in (
            ("imgs-0002.tar", 3),
            ("imgs-{0001..0002}.tar", 5),
            ("imgs-{0003,0000}.tar", 5),
            ("imgs-00{0..0}{0..3}.tar", 10),
        ):
            assert len(Shards(tmp_path / "pets" / pattern, SIDE)) == count
        assert levels(Shards(tmp_path / "pets" / "imgs-{0003,0000}.tar", SIDE)) == [0, 6, 7, 8, 9]

    def test_names(self, tmp_path, monkeypatch):
        monkeypatch.chdir(shards(tmp_path / "pets", [1, 1]))
        names = [
            Shards(path, SIDE).name
            for path in (".", "imgs-{0000..0001}.tar", "imgs-0001.tar", "{imgs-0000,imgs-0001}.tar")
        ]
        assert names == ["shards:pets", "shards:imgs", "shards:imgs-0001", "shards:pets"]

    def test_braces(self):
        assert _expanded("a") == ["a"]
        assert _expanded("{8..11}") == ["8", "9", "10", "11"]
        assert _expanded("x{08..10}{a,b}.tar") == [f"x{i}{c}.tar" for i in ("08", "09", "10") for c in "ab"]

    def test_a_folder_with_braces_in_its_name(self, tmp_path):
        assert len(Shards(shards(tmp_path / "{old}", [2]), SIDE)) == 2

    @pytest.mark.parametrize("braces", ["{5..1}", "{a..b}", "{7}", "{}", "{0..9999999999}"])
    def test_braces_that_mean_nothing(self, tmp_path, braces):
        with pytest.raises(HemstitchError, match=re.escape(f"{braces} in ") + ".* is no range like {0000..0099}"):
            Shards(tmp_path / f"imgs-{braces}.tar", SIDE)

    def test_missing(self, tmp_path):
        with pytest.raises(HemstitchError, match=r"nowhere does not exist: give a folder of .tar files"):
            Shards(tmp_path / "nowhere", SIDE)
        shards(tmp_path, [1, 1, 1])
        (tmp_path / "imgs-0001.tar").unlink()
        with pytest.raises(HemstitchError, match=r"2 of the 4 shards .*: .*imgs-0001.tar, .*imgs-0003.tar; correct"):
            Shards(tmp_path / "imgs-{0000..0003}.tar", SIDE)

    def test_no_shards(self, tmp_path):
        (tmp_path / "x.zip").touch()
        (tmp_path / "._imgs.tar").touch()
        with pytest.raises(HemstitchError, match=r"no .tar files in "):
            Shards(tmp_path, SIDE)

    def test_no_path(self):
        with pytest.raises(HemstitchError, match=r"shards need their folder or pattern: data.path"):
            open_dataset("shards", "", SIDE)

    def test_size(self, tmp_path):
        with pytest.raises(HemstitchError, match="size is the side of the images to give"):
            Shards(shards(tmp_path, [1]), 0)

    @pytest.mark.parametrize("name", ["imgs-0009.tar.gz", "imgs-0009.tgz", "imgs-0009.tar"])
    def test_compressed(self, tmp_path, name):
        shards(tmp_path, [1])
        with tarfile.open(tmp_path / name, "w:gz"):
            pass
        with pytest.raises(HemstitchError, match=r"imgs-0009.* is compressed.*unpack it \(gunzip\) to a .tar"):
            Shards(tmp_path, SIDE)
        with pytest.raises(HemstitchError, match="is compressed"):
            Shards(tmp_path / name, SIDE)


class TestLabels:
    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("0000.cls", b"cat", r"x.tar/0000.cls says the label is 'cat': expected a number from 0"),
            ("0000.cls", b"-1", "says the label is '-1'"),
            ("0000.cls", b"1.0", "says the label is '1.0'"),
            ("0000.cls", b"", "says the label is ''"),
            ("0000.cls", b"9" * 99, "says the label is '99999"),
            ("0000.json", b'{"label": "cat"}', r"x.tar/0000.json says the label is 'cat'"),
            ("0000.json", b'{"label": true}', "says the label is 'True'"),
            ("0000.json", b'{"label": -3}', "says the label is '-3'"),
            ("0000.json", b'{"label": null}', "says the label is 'None'"),
            ("0000.json", b"{", r"x.tar/0000.json is not JSON \("),
            ("0000.json", b"[" * 100_000, r"0000.json is not JSON \("),
            ("0000.cls", b"12345678", "go up to 12,345,678: number the classes from 0"),
        ],
    )
    def test_no_numbers(self, tmp_path, name, content, message):
        with pytest.raises(HemstitchError, match=message):
            Shards(tar(tmp_path / "x.tar", [("0000.png", png(0)), (name, content)]), SIDE)

    def test_all_or_none(self, tmp_path):
        shards(tmp_path, [3, 3])
        tar(tmp_path / "imgs-0002.tar", [("7.png", png(7)), ("8.png", png(8))])
        with pytest.raises(
            HemstitchError,
            match=r"2 of 8 samples .* no label beside others that do: .*imgs-0002.tar/7.png, .*8.png; give",
        ):
            Shards(tmp_path, SIDE)

    def test_two_images(self, tmp_path):
        with pytest.raises(HemstitchError, match=r"a sample of .*x.tar has two of a kind, a.png and a.jpg: keep one"):
            Shards(tar(tmp_path / "x.tar", [("a.png", png(0)), ("a.jpg", png(1))]), SIDE)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("classes.txt", "cat", r"classes.txt names 1 classes \(0..0\); the labels go up to 1"),
            ("classes.txt", "cat\n\ndog", "is not a list of names"),
            ("classes.json", '["cat", 3]', "classes.json is not a list of names"),
            ("classes.json", '{"cat": 0}', "is not a list of names"),
            ("classes.json", "[", "the names of the classes in .* cannot be read"),
        ],
    )
    def test_names_that_do_not_fit(self, tmp_path, name, content, message):
        (shards(tmp_path, [2]) / name).write_text(content)
        with pytest.raises(HemstitchError, match=message):
            Shards(tmp_path, SIDE)

    def test_two_lists_of_names(self, tmp_path):
        shards(tmp_path, [2])
        (tmp_path / "classes.txt").write_text("cat\ndog")
        (tmp_path / "classes.json").write_text("[]")
        with pytest.raises(HemstitchError, match=r"has both classes.txt and classes.json"):
            Shards(tmp_path, SIDE)


class TestTar:
    """Our reading of headers against the standard library's."""

    NAMES = ("a.png", "x/" * 60 + "deep.png", "y" * 99, "y" * 100, "y" * 101, "z" * 300 + ".png", "größe/ünï.png", "d/")

    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_same_members(self, tmp_path, form):
        path = tmp_path / "x.tar"
        names = [name for name in self.NAMES if form != tarfile.USTAR_FORMAT or len(name) <= 100 or "/" in name]
        with tarfile.open(path, "w", format=form) as file:
            for i, name in enumerate(names):
                info = tarfile.TarInfo(name)
                info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
                info.size = 511 + i if info.isreg() else 0
                info.mtime = 1.5  # which POSIX notes in a header of its own
                info.pax_headers = {"comment": "größer\nals = zuvor"}
                file.addfile(info, io.BytesIO(bytes([i]) * info.size))
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "w" * 200 if form != tarfile.USTAR_FORMAT else "w"
            file.addfile(link)
            file.addfile(tarfile.TarInfo("empty.png"))
        with tarfile.open(path) as file:
            expected = [(info.name, info.offset_data, info.size) for info in file.getmembers() if info.isreg()]
        with path.open("rb") as stream:
            found = list(_members(stream.fileno(), path.stat().st_size))
        assert [tuple(member) for member in found] == expected

    def test_sizes_above_8_gib(self, tmp_path):
        """In either notation; the file has holes where the bytes would be."""
        size = 9 << 30
        for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
            info = tarfile.TarInfo("big.bin")
            info.size = size
            head = info.tobuf(form)
            after = tarfile.TarInfo("a.png").tobuf(form)
            path = tmp_path / f"{form}.tar"
            with path.open("wb") as stream:
                stream.write(head)
                stream.seek(size, os.SEEK_CUR)
                stream.write(after + bytes(1024))
            with path.open("rb") as stream:
                found = list(_members(stream.fileno(), path.stat().st_size))
            assert [tuple(m) for m in found] == [("big.bin", len(head), size), ("a.png", len(head + after) + size, 0)]

    @pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_every_cut_and_every_flip_is_noticed(self, tmp_path, form):
        """Whatever is done to the headers, the members before are the true ones and nothing but damage is raised."""
        path = tar(tmp_path / "x.tar", [(f"{'n' * 120}{i}.png", bytes(700)) for i in range(3)], format=form)
        whole = path.read_bytes()
        with path.open("rb") as stream:
            expected = list(_members(stream.fileno(), len(whole)))
        rng = np.random.default_rng(0)
        cuts = [whole[:at] for at in (0, 1, 511, 512, *rng.integers(0, expected[-1].offset + 700, 60).tolist())]
        flips = []
        for at in rng.integers(0, expected[-1].offset, 200).tolist():
            flips.append(bytearray(whole))
            flips[-1][at] ^= 1 << int(rng.integers(8))
        for content in cuts + flips:
            path.write_bytes(bytes(content))
            found = []
            with path.open("rb") as stream:
                try:
                    for member in _members(stream.fileno(), len(content)):
                        found.append(member)
                    damage = False
                except _DamageError:
                    damage = True
            assert [m.offset for m in found] == [m.offset for m in expected[: len(found)]]
            assert damage or len(found) == 3


class TestDamaged:
    def test_cut_in_the_middle_of_an_image(self, tmp_path):
        shards(tmp_path, [40] * 10)
        cut(tmp_path / "imgs-0003.tar", "0158.png", 30)  # two of its forty are lost
        with pytest.warns(
            UserWarning, match=r"about 2 of 400 samples .* lost: .*0003.tar \(it ends in the middle of 0158"
        ):
            data = Shards(tmp_path, SIDE)
        assert len(data) == 398
        assert levels(data, [157, 158, 397]) == [157, 160, 399 % 256]
        assert data.labels.tolist() == [i % 2 for i in range(398)]

    def test_cut_between_an_image_and_its_label(self, tmp_path):
        shards(tmp_path, [40] * 10)
        os.truncate(tmp_path / "imgs-0003.tar", header_of(tmp_path / "imgs-0003.tar", "0159.cls"))
        with pytest.warns(UserWarning, match=r"about 1 of 400 .*ends without the mark of a tar's end"):
            data = Shards(tmp_path, SIDE)
        assert len(data) == 399
        assert levels(data, [158, 159]) == [158, 160]

    def test_cut_in_an_unlabelled_set(self, tmp_path):
        tar(tmp_path / "x.tar", [(f"{i}.png", png(i)) for i in range(5)])
        cut(tmp_path / "x.tar", "4.png", 30)
        with pytest.warns(UserWarning, match="about 1 of 5 samples"):
            assert levels(Shards(tmp_path, SIDE)) == [0, 1, 2, 3]

    def test_no_header(self, tmp_path):
        shards(tmp_path, [40] * 10)
        at = spoil_header(tmp_path / "imgs-0003.tar", "0157.png")
        with pytest.warns(UserWarning, match=rf"about [34] of 40. .*no header of a member at byte {at:,}\)"):
            data = Shards(tmp_path, SIDE)
        assert len(data) == 397

    def test_zeros_in_place_of_the_rest(self, tmp_path):
        """As a file looks whose room was kept and whose copying stopped. To tar it is a proper end."""
        path = shards(tmp_path, [1000] * 2) / "imgs-0001.tar"
        whole = path.read_bytes()[: header_of(path, "1995.png")]
        path.write_bytes(whole + bytes(14_000) + b"more")
        with pytest.warns(
            UserWarning, match=r"about \d of 2,00\d .*it goes on for 14,004 bytes after the mark of its end"
        ):
            assert len(Shards(tmp_path, SIDE)) == 1995
        path.write_bytes(whole + bytes(1 << 21))
        with pytest.raises(HemstitchError, match=r"more than 1%: .*it goes on for 2,097,152 bytes after"):
            Shards(tmp_path, SIDE)

    def test_two_tars_in_one_file(self, tmp_path):
        """A reader of tars sees the first alone."""
        shards(tmp_path, [1000, 3])
        first, second = tmp_path / "imgs-0000.tar", tmp_path / "imgs-0001.tar"
        first.write_bytes(first.read_bytes() + second.read_bytes())
        second.unlink()
        with pytest.warns(
            UserWarning, match=r"about \d+ of 1,0\d\d .*goes on for [\d,]+ bytes after the mark of its end"
        ):
            assert len(Shards(tmp_path, SIDE)) == 1000

    def test_what_is_lost_goes_by_the_others(self, tmp_path):
        """A shard that is cut early has lost what the median of the others holds."""
        shards(tmp_path, [20, 20, 20, 20, 5])
        cut(tmp_path / "imgs-0001.tar", "0021.png", 5)
        with pytest.raises(
            HemstitchError, match=r"about 19 of 85 samples .* are lost, more than 1%: .*0001.tar .*copy"
        ):
            Shards(tmp_path, SIDE)

    def test_what_is_lost_goes_by_the_bytes(self, tmp_path):
        """The rest of a shard that is larger than the others has room for more than they hold."""
        shards(tmp_path, [20, 80, 20])
        spoil_header(tmp_path / "imgs-0001.tar", "0025.png")
        with pytest.raises(HemstitchError, match=r"about 7[5-8] of 12\d samples"):
            Shards(tmp_path, SIDE)

    def test_at_least_one(self, tmp_path):
        """Of a lone shard nothing more can be known."""
        shards(tmp_path, [30])
        cut(tmp_path / "imgs-0000.tar", "0003.png", 5)
        with pytest.warns(UserWarning, match="about 1 of 4 samples"):
            assert len(Shards(tmp_path, SIDE)) == 3

    @pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\0" * 100])
    def test_nothing_of_a_tar(self, tmp_path, content):
        shards(tmp_path, [2] * 4)
        (tmp_path / "imgs-0002.tar").write_bytes(content)
        with pytest.warns(UserWarning, match=r"about 2 of 8 samples .* lost: .*imgs-0002.tar \("):
            assert levels(Shards(tmp_path, SIDE)) == [0, 1, 2, 3, 6, 7]

    @pytest.mark.parametrize("content", [b"", b"<html>404</html>", bytes(10240)])
    def test_nothing_at_all(self, tmp_path, content):
        (tmp_path / "x.tar").write_bytes(content)
        with pytest.raises(HemstitchError, match=r"no samples in .*: expected members such as 000.jpg and 000.cls"):
            Shards(tmp_path, SIDE)

    def test_labels_without_images(self, tmp_path):
        tar(tmp_path / "x.tar", [*samples(0, 9), ("a.tif", b"a format that is not read"), ("a.cls", b"1")])
        with pytest.warns(UserWarning, match=r"about 1 of 10 .*x.tar/a.cls \(a label without an image\)"):
            assert len(Shards(tmp_path, SIDE)) == 9

    def test_one_percent_of_the_samples(self, tmp_path):
        shards(tmp_path, [100] * 5)
        cut(tmp_path / "imgs-0001.tar", "0195.png", 5)
        with pytest.warns(UserWarning, match="about 5 of 500"):
            data = Shards(tmp_path, SIDE)
        assert len(data) == 495
        cut(shards(tmp_path, [100] * 5) / "imgs-0001.tar", "0194.png", 5)
        with pytest.raises(HemstitchError, match=r"about 6 of 500 samples .* are lost, more than 1%"):
            Shards(tmp_path, SIDE)

    def test_shorter_than_it_was(self, tmp_path):
        data = Shards(shards(tmp_path, [3]), SIDE)
        os.truncate(tmp_path / "imgs-0000.tar", 600)
        with pytest.raises(HemstitchError, match=r"imgs-0000.tar is shorter than when it was opened"):
            levels(data)

    def test_gone(self, tmp_path):
        data = Shards(shards(tmp_path, [3]), SIDE)
        (tmp_path / "imgs-0000.tar").unlink()
        with pytest.raises(HemstitchError, match=r"imgs-0000.tar cannot be read \(No such file or directory\)"):
            levels(data)


class TestBrokenImages:
    def test_the_next_of_the_class(self, tmp_path):
        """Classes alternate; round to the first of the class after the last."""
        shards(tmp_path, [4, 4])
        spoil_image(tmp_path / "imgs-0000.tar", "0002.png")
        spoil_image(tmp_path / "imgs-0001.tar", "0007.png")
        data = Shards(tmp_path, SIDE)
        with pytest.warns(
            UserWarning, match=r"2 of the images .*others of their class.*: .*0000.tar/0002.png, .*0007.png$"
        ):
            assert levels(data) == [0, 1, 4, 3, 4, 5, 6, 1]
        assert data.broken == [tmp_path / "imgs-0000.tar" / "0002.png", tmp_path / "imgs-0001.tar" / "0007.png"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert levels(data, [7, 2]) == [1, 4]
        assert len(data.broken) == 2

    def test_other_formats_stay_shut(self, tmp_path):
        whole = io.BytesIO()
        Image.new("RGB", (9, 9)).save(whole, "eps")
        tar(tmp_path / "x.tar", [("a.png", whole.getvalue()), ("b.png", png(7))])
        with pytest.warns(UserWarning, match=r"x.tar/a.png"):
            assert levels(Shards(tmp_path, SIDE)) == [7, 7]

    def test_a_class_without_any(self, tmp_path):
        shards(tmp_path, [4])
        (tmp_path / "classes.txt").write_text("cat\ndog")
        for name in ("0001.png", "0003.png"):
            spoil_image(tmp_path / "imgs-0000.tar", name)
        with pytest.raises(HemstitchError, match=r"no image in .*, class dog can be decoded: replace them or remove"):
            levels(Shards(tmp_path, SIDE))

    def test_more_than_one_percent_stops_for_good(self, tmp_path):
        shards(tmp_path, [400])
        for i in range(5):
            spoil_image(tmp_path / "imgs-0000.tar", f"{i * 7:04}.png")
        data = Shards(tmp_path, SIDE)
        with pytest.warns(UserWarning, match="4 of the images"):
            levels(data, list(range(28)))
        for index in ([28], [28], [1]):
            with pytest.raises(HemstitchError, match=r"more than 1% of the images .*, 5 of 400 so far: .*; check how"):
                levels(data, index)

    def test_those_lost_count_too(self, tmp_path):
        path = shards(tmp_path, [400]) / "imgs-0000.tar"
        for i in (0, 7, 14, 21):
            spoil_image(path, f"{i:04}.png")
        cut(path, "0399.cls", 0)
        with pytest.warns(UserWarning, match="about 1 of 400"):
            data = Shards(tmp_path, SIDE)
        with pytest.warns(UserWarning, match="3 of the images"):
            levels(data, list(range(20)))
        with pytest.raises(HemstitchError, match=r"4 of 399 so far, and about 1 are lost beside them: "):
            levels(data, [21])

    def test_a_format_that_nothing_reads_is_noticed_soon(self, tmp_path, monkeypatch):
        tar(tmp_path / "x.tar", [(f"{i:04}.png", b"no image") for i in range(2000)])
        data = Shards(tmp_path, SIDE)
        tried = []
        monkeypatch.setattr("hemstitch.data.decoded.decode", tried.append)
        with pytest.raises(HemstitchError, match="more than 1% of the images"):
            levels(data, [0, 1000])
        assert len(tried) <= 2 * 21


class TestThreads:
    """What stands in for an image depends on the index alone, and each broken one is told of once."""

    def broken_set(self, folder):
        shards(folder, [100] * 4, classes=5)
        for i in (3, 8, 50, 399):  # 3 and 8 follow each other in their class, and 399 is its last
            spoil_image(folder / f"imgs-{i // 100:04}.tar", f"{i:04}.png")
        return folder

    def test_any_thread_first(self, tmp_path):
        self.broken_set(tmp_path)
        expected = [i % 256 for i in range(400)]
        expected[3], expected[8], expected[50], expected[399] = 13, 13, 55, 4
        for seed in range(3):
            data = Shards(tmp_path, SIDE)
            barrier = threading.Barrier(4)

            def read(order, data=data, barrier=barrier):
                barrier.wait()
                return [levels(data, part.tolist()) for part in order.split(40)]

            orders = [torch.randperm(400, generator=torch.Generator().manual_seed(10 * seed + i)) for i in range(4)]
            with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(4) as threads:
                warnings.simplefilter("always")
                results = list(threads.map(read, orders))
            for order, result in zip(orders, results, strict=True):
                assert [level for part in result for level in part] == [expected[i] for i in order]
            named = re.findall(r"tar/(\d+)\.png", " ".join(str(warning.message) for warning in caught))
            assert sorted(named) == ["0003", "0008", "0050", "0399"]
            assert sorted(path.name for path in data.broken) == [f"{name}.png" for name in sorted(named)]

    def test_one_pool_for_all(self, tmp_path):
        one, two = Shards(shards(tmp_path / "a", [2]), SIDE), Shards(shards(tmp_path / "b", [2]), SIDE)
        before = pool()
        levels(one), levels(two), levels(one)
        assert pool() is before

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_after_a_fork(self, tmp_path):
        """The child has none of the parent's threads, and makes its own."""
        data = Shards(shards(tmp_path, [4]), SIDE)
        levels(data)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(0 if levels(data) == [0, 1, 2, 3] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
