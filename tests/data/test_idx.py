"""Files of IDX: what is read, how it is padded, and every way in which such files are wrong."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from hemstitch.data import Idx, open_dataset
from hemstitch.data.idx import FASHION
from hemstitch.errors import HemstitchError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx(array, *, shape=None, magic=None):
    """An array as the bytes of an IDX file, or ones that lie."""
    shape = array.shape if shape is None else shape
    head = struct.pack(">I", 0x800 + len(shape) if magic is None else magic)
    return head + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


def pixels(count=12, side=28, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side), dtype=np.uint8)


def labels(count=12):
    return np.arange(count, dtype=np.uint8) % 10


def save(folder, images=None, numbers=None, prefix="train", packed=True):
    """A pair of files; bytes are written as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("images-idx3", pixels() if images is None else images), ("labels-idx1", numbers)):
        content = labels() if content is None else content
        whole = content if isinstance(content, bytes) else idx(content)
        file = folder / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}"
        file.write_bytes(gzip.compress(whole) if packed else whole)
    return folder


def levels(data, index):
    return ((data.images(index) + 1) * 127.5).round().to(torch.uint8).squeeze(1).numpy()


class TestReading:
    @pytest.mark.parametrize("packed", [True, False])
    def test_round_trip(self, tmp_path, packed):
        data = Idx(save(tmp_path / "mnist", packed=packed))
        assert (data.name, data.channels, data.size, data.flippable) == ("idx:mnist", 1, 28, False)
        assert data.classes == tuple("0123456789")
        assert data.labels.dtype == torch.int64
        assert data.labels.tolist() == labels().tolist()
        index = torch.tensor([11, 0, 3, 3, -1])
        assert np.array_equal(levels(data, index), pixels()[index])

    def test_shape_and_range(self, tmp_path):
        images = pixels()
        images[0, 0, :3] = 0, 255, 51
        x0 = Idx(save(tmp_path, images)).images(torch.tensor([0, 1]))
        assert (x0.shape, x0.dtype, x0.is_contiguous()) == ((2, 1, 28, 28), torch.float32, True)
        torch.testing.assert_close(x0[0, 0, 0, :3], torch.tensor([-1.0, 1.0, -0.6]))

    def test_no_rows(self, tmp_path):
        assert Idx(save(tmp_path), 32).images(torch.tensor([], dtype=torch.int64)).shape == (0, 1, 32, 32)

    def test_packed_whatever_it_is_called(self, tmp_path):
        save(tmp_path)
        for file in list(tmp_path.iterdir()):
            file.rename(file.with_suffix(""))
        assert len(Idx(tmp_path)) == 12

    def test_splits(self, tmp_path):
        save(tmp_path, pixels(5, seed=1), labels(5), prefix="t10k")
        save(tmp_path)
        assert len(Idx(tmp_path)) == 12
        testing = Idx(tmp_path, split="test")
        assert np.array_equal(levels(testing, torch.arange(5)), pixels(5, seed=1))

    def test_one_file(self, tmp_path):
        save(tmp_path, pixels(5, seed=1), labels(5), prefix="t10k", packed=False)
        data = Idx(tmp_path / "t10k-images-idx3-ubyte")
        assert np.array_equal(levels(data, torch.arange(5)), pixels(5, seed=1))
        assert data.labels.tolist() == [0, 1, 2, 3, 4]

    def test_classes_are_as_many_as_there_are(self, tmp_path):
        assert Idx(save(tmp_path, numbers=labels() + 36)).classes == tuple(map(str, range(46)))

    def test_black_on_all_sides(self, tmp_path):
        data = Idx(save(tmp_path), 32)
        assert data.size == 32
        padded = levels(data, torch.arange(12))
        assert np.array_equal(padded, np.pad(pixels(), ((0, 0), (2, 2), (2, 2))))
        assert (data.images(torch.tensor([0]))[0, 0, 0] == -1).all()


class TestFashion:
    @pytest.mark.parametrize("folder", ["fashion-mnist", "FashionMNIST", "FashionMNIST/raw"])
    def test_told_by_the_folder(self, tmp_path, folder):
        data = Idx(save(tmp_path / folder))
        assert data.classes == FASHION
        assert data.flippable
        assert data.name == f"idx:{folder.removesuffix('/raw')}"

    def test_or_by_the_caller(self, tmp_path, monkeypatch):
        monkeypatch.chdir(save(tmp_path / "fashion"))
        assert Idx(Path(), fashion=False).classes == tuple("0123456789")
        assert Idx(Path()).flippable
        assert open_dataset("fashion_mnist", str(save(tmp_path / "other"))).classes == FASHION

    def test_has_ten_classes(self, tmp_path):
        with pytest.raises(HemstitchError, match=r"labels-idx1-ubyte.gz has a label 10: those of Fashion-MNIST"):
            Idx(save(tmp_path / "fashion", numbers=labels() + 1))

    def test_debians(self):
        """60,000 images; the first is an ankle boot."""
        if not DEBIAN.exists():
            pytest.skip(f"{DEBIAN} is not there: apt install dataset-fashion-mnist")
        data = open_dataset("fashion_mnist", "", 32)
        assert (len(data), data.channels, data.size, data.name) == (60_000, 1, 32, "idx:fashion-mnist")
        assert data.labels.bincount().tolist() == [6000] * 10
        assert data.classes[data.labels[0]] == "Ankle boot"
        first = levels(data, torch.tensor([0]))[0]
        assert int(first.sum()) == 76247
        assert len(Idx(DEBIAN, split="test")) == 10_000

    def test_debians_is_not_there(self, monkeypatch, tmp_path):
        monkeypatch.setattr("hemstitch.data._FASHION", tmp_path / "nowhere")
        with pytest.raises(HemstitchError, match="apt install dataset-fashion-mnist, or give the folder"):
            open_dataset("fashion_mnist")


class TestRefused:
    def test_no_path(self):
        with pytest.raises(HemstitchError, match=r"files of IDX need their folder: data.path"):
            open_dataset("idx")

    @pytest.mark.parametrize("size", [27, 31, 8, -1])
    def test_size(self, tmp_path, size):
        with pytest.raises(
            HemstitchError, match=rf"size is 28, .* even number of black pixels more \(32\), not {size}"
        ):
            Idx(save(tmp_path), size)

    def test_split(self, tmp_path):
        with pytest.raises(HemstitchError, match="split is 'train' or 'test', not 'all'"):
            Idx(save(tmp_path), split="all")

    def test_missing(self, tmp_path):
        with pytest.raises(HemstitchError, match=r"nowhere does not exist: give the folder that holds train-images"):
            Idx(tmp_path / "nowhere")

    @pytest.mark.parametrize(("gone", "kind"), [("images", "idx3"), ("labels", "idx1")])
    def test_one_of_the_files_is_missing(self, tmp_path, gone, kind):
        (save(tmp_path) / f"train-{gone}-{kind}-ubyte.gz").unlink()
        with pytest.raises(HemstitchError, match=rf"has no train-{gone}-{kind}-ubyte, nor .*\.gz: put it there"):
            Idx(tmp_path)

    def test_a_split_that_is_not_there(self, tmp_path):
        with pytest.raises(HemstitchError, match="has no t10k-images-idx3-ubyte"):
            Idx(save(tmp_path), split="test")

    def test_a_file_of_another_name(self, tmp_path):
        (tmp_path / "pictures").write_bytes(idx(pixels()))
        with pytest.raises(HemstitchError, match="pictures is not named like a file of images"):
            Idx(tmp_path / "pictures")

    @pytest.mark.parametrize("packed", [True, False])
    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (b"", r"images-idx3-ubyte\S* begins with nothing: an IDX file of images begins with 00000803"),
            (b"<html>404", "begins with 3c68746d: an IDX"),
            (idx(labels()), "begins with 00000801: an IDX"),
            (idx(pixels(), magic=0xD03), "begins with 00000d03: an IDX"),
            (idx(pixels())[:10], "ends within its header"),
            (idx(pixels())[:-1], "is cut short: 9,407 bytes of images of the 9,408 that its header says"),
            (idx(pixels(), shape=(2**32 - 1,) * 3), "is cut short: 9,408 bytes of images of the 79,228,"),
            (idx(pixels()) + b"\0", "goes on after the 9,408 bytes of images that its header says"),
            (idx(pixels(12).reshape(12, 14, 56)), r"images of shape \(12, 14, 56\) \(N, S, S\): expected"),
            (idx(pixels(0)), r"images of shape \(0, 28, 28\)"),
            (idx(pixels(11)), "holds 11 images and .* 12 labels: they are not of one set"),
        ],
    )
    def test_images(self, tmp_path, images, message, packed):
        numbers = labels(0) if images == idx(pixels(0)) else labels()
        with pytest.raises(HemstitchError, match=message):
            Idx(save(tmp_path, images, numbers, packed=packed))

    @pytest.mark.parametrize(
        ("numbers", "message"),
        [
            (idx(pixels()), r"labels-idx1-ubyte.gz begins with 00000803: an IDX file of labels begins with 00000801"),
            (idx(labels())[:-3], "is cut short: 9 bytes of labels of the 12"),
            (idx(labels(13)), "12 images and .* 13 labels"),
        ],
    )
    def test_labels(self, tmp_path, numbers, message):
        with pytest.raises(HemstitchError, match=message):
            Idx(save(tmp_path, numbers=numbers))

    @pytest.mark.parametrize("where", [0.5, 0.999, "checksum", "body"])
    def test_packed_and_damaged(self, tmp_path, where):
        file = save(tmp_path) / "train-images-idx3-ubyte.gz"
        whole = bytearray(file.read_bytes())
        if isinstance(where, float):
            del whole[int(len(whole) * where) :]
        else:
            whole[-6 if where == "checksum" else len(whole) // 2] ^= 0xFF
        file.write_bytes(bytes(whole))
        with pytest.raises(HemstitchError, match=r"train-images-idx3-ubyte.gz is damaged \(.*\): copy it again"):
            Idx(tmp_path)
