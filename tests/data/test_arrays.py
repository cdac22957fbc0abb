"""Arrays in files: the layouts, where labels are found, and what is refused."""

import io
import re

import numpy as np
import pytest
import torch

from hemstitch.data import Arrays, open_dataset
from hemstitch.errors import HemstitchError


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def npz(path, *args, **arrays):
    np.savez(path, *args, **arrays)
    return path


def npy(path, array):
    np.save(path, array)
    return path


def levels(data, index=None):
    x0 = data.images(torch.arange(len(data)) if index is None else torch.tensor(index))
    return ((x0 + 1) * 127.5).round().to(torch.uint8).numpy()


class TestLayouts:
    @pytest.mark.parametrize("suffix", ["npz", "npy"])
    @pytest.mark.parametrize(
        ("shape", "to_first"),
        [
            ((6, 8, 8), lambda x: x[:, None]),
            ((6, 8, 8, 1), lambda x: x.transpose(0, 3, 1, 2)),
            ((6, 8, 8, 3), lambda x: x.transpose(0, 3, 1, 2)),
            ((6, 1, 8, 8), lambda x: x),
            ((6, 3, 8, 8), lambda x: x),
            ((6, 3, 3), lambda x: x[:, None]),
            ((6, 3, 3, 3), lambda x: x.transpose(0, 3, 1, 2)),
            ((6, 1, 3, 3), lambda x: x),
            ((6, 3, 1, 1), lambda x: x),
        ],
    )
    def test_round_trip(self, tmp_path, shape, to_first, suffix):
        images = pixels(*shape)
        path = npz(tmp_path / "x.npz", images=images) if suffix == "npz" else npy(tmp_path / "x.npy", images)
        data = Arrays(path)
        expected = to_first(images)
        assert (data.channels, data.size, len(data)) == (*expected.shape[1:3], 6)
        assert np.array_equal(levels(data), expected)
        assert np.array_equal(levels(data, [5, 0, 0, -1]), expected[[5, 0, 0, -1]])

    def test_contract(self, tmp_path):
        images = pixels(4, 8, 8, 3)
        images[0, 0, 0] = 0, 255, 51
        data = Arrays(npz(tmp_path / "cats.npz", images=images, labels=[0, 2, 1, 2]), 8)
        assert (data.name, data.classes, data.flippable) == ("arrays:cats", ("0", "1", "2"), True)
        assert data.labels.dtype == torch.int64
        assert data.labels.tolist() == [0, 2, 1, 2]
        x0 = data.images(torch.tensor([0, 1]))
        assert (x0.shape, x0.dtype, x0.is_contiguous()) == ((2, 3, 8, 8), torch.float32, True)
        torch.testing.assert_close(x0[0, :, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))
        assert data.images(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 8, 8)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_floats_are_taken_as_they_are(self, tmp_path, dtype):
        images = np.linspace(-1, 1, 6 * 8 * 8).reshape(6, 8, 8).astype(dtype)
        x0 = Arrays(npy(tmp_path / "x.npy", images)).images(torch.arange(6))
        assert x0.dtype == torch.float32
        assert np.array_equal(x0[:, 0].numpy(), images.astype(np.float32))

    def test_a_npy_stays_on_disk(self, tmp_path):
        data = Arrays(npy(tmp_path / "x.npy", pixels(6, 8, 8, 3)))
        assert isinstance(data._images, np.memmap)

    def test_columns_first_in_memory(self, tmp_path):
        images = np.asfortranarray(pixels(6, 8, 8))
        assert np.array_equal(levels(Arrays(npy(tmp_path / "x.npy", images)))[:, 0], images)

    def test_by_name(self, tmp_path):
        assert len(open_dataset("arrays", str(npz(tmp_path / "x.npz", pixels(5, 8, 8))))) == 5


class TestLabels:
    def test_unnamed_arrays_of_a_npz(self, tmp_path):
        data = Arrays(npz(tmp_path / "x.npz", pixels(3, 8, 8), np.array([1, 0, 1], np.uint8)))
        assert data.labels.tolist() == [1, 0, 1]

    def test_none(self, tmp_path):
        data = Arrays(npz(tmp_path / "x.npz", images=pixels(3, 8, 8)))
        assert data.classes == ()
        assert data.labels.tolist() == [0, 0, 0]
        assert not data.spec(null_label=True).null_label

    @pytest.mark.parametrize(
        ("images", "labels"),
        [
            ("cats", "cats_labels"),
            ("cats", "labels"),
            ("images", "labels"),
            ("train_images", "train_labels"),
            ("train_images", "train_images_labels"),
        ],
    )
    def test_beside_a_npy(self, tmp_path, images, labels):
        npy(tmp_path / f"{labels}.npy", np.array([1, 0, 2]))
        assert Arrays(npy(tmp_path / f"{images}.npy", pixels(3, 8, 8))).labels.tolist() == [1, 0, 2]

    def test_its_own_before_the_folders(self, tmp_path):
        npy(tmp_path / "labels.npy", np.array([0, 0, 0]))
        npy(tmp_path / "cats_labels.npy", np.array([1, 0, 2]))
        assert Arrays(npy(tmp_path / "cats.npy", pixels(3, 8, 8))).labels.tolist() == [1, 0, 2]

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([[0], [1], [2]], r"labels of .*x.npz are of shape \(3, 1\), for 3 images: expected \(3,\)"),
            ([0, 1], r"of shape \(2,\), for 3 images"),
            ([0.0, 1.0, 2.0], "are float64: expected whole numbers"),
            ([True, False, True], "are bool: expected whole numbers"),
            ([0, -1, 2], "go down to -1: classes are numbered from 0"),
            ([0, 1, 5_000_000], r"go up to 5,000,000: number the classes from 0 without gaps"),
            (np.array([0, 1, 2**64 - 1], np.uint64), "go up to 18,446,744,073,709,551,615: number"),
        ],
    )
    def test_refused(self, tmp_path, labels, message):
        with pytest.raises(HemstitchError, match=message):
            Arrays(npz(tmp_path / "x.npz", images=pixels(3, 8, 8), labels=labels))


class Trap:
    """Pickled, it would run code when loaded."""

    def __reduce__(self):
        return pytest.fail, ("a file was unpickled",)


class TestRefused:
    def test_no_path(self):
        with pytest.raises(HemstitchError, match=r"arrays need their file: data.path"):
            open_dataset("arrays")

    @pytest.mark.parametrize("name", ["gone.npz", "gone.npy"])
    def test_missing(self, tmp_path, name):
        with pytest.raises(HemstitchError, match=r"gone.np. does not exist: give a .npz or .npy file"):
            Arrays(tmp_path / name)

    @pytest.mark.parametrize("name", ["", "x.csv"])
    def test_something_else(self, tmp_path, name):
        (tmp_path / "x.csv").write_text("1,2,3")
        with pytest.raises(HemstitchError, match=r"is not one: give a .npz or .npy file"):
            Arrays(tmp_path / name)

    def test_no_images(self, tmp_path):
        with pytest.raises(HemstitchError, match=r"x.npz holds no `images`: name them so"):
            Arrays(npz(tmp_path / "x.npz", pictures=pixels(3, 8, 8)))

    @pytest.mark.parametrize("shape", [(8, 8), (3, 8, 9), (3, 8, 8, 2), (3, 8, 8, 4), (3, 8, 9, 3), (2, 3, 8, 8, 3)])
    def test_shape(self, tmp_path, shape):
        with pytest.raises(HemstitchError, match=re.escape(f"are of shape {shape}: expected square ones")):
            Arrays(npz(tmp_path / "x.npz", images=pixels(*shape)))

    def test_nothing_in_it(self, tmp_path):
        with pytest.raises(HemstitchError, match=r"holds no images: their shape is \(0, 8, 8\)"):
            Arrays(npz(tmp_path / "x.npz", images=pixels(0, 8, 8)))

    @pytest.mark.parametrize("size", [4, 16, -1])
    def test_size(self, tmp_path, size):
        with pytest.raises(HemstitchError, match=f"are 8 pixels wide: size is that or 0, not {size}; resize"):
            Arrays(npz(tmp_path / "x.npz", images=pixels(3, 8, 8)), size)

    @pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.bool_, np.complex64])
    def test_other_numbers(self, tmp_path, dtype):
        with pytest.raises(HemstitchError, match=f"are {np.dtype(dtype)}: give uint8 in 0..255, or floats in -1..1"):
            Arrays(npz(tmp_path / "x.npz", images=pixels(3, 8, 8).astype(dtype)))

    @pytest.mark.parametrize(
        ("low", "high", "message"),
        [
            (0.0, 255.0, "float32 from 0 to 255: give uint8"),
            (-2.0, 1.0, "float32 from -2 to 1: give uint8"),
            (0.0, 1.0, r"float32 from 0 to 1, so probably 0 is black: .* \(images \* 2 - 1\)"),
            (np.nan, 1.0, "float32 from nan to nan: give uint8"),
            (-np.inf, 1.0, "float32 from -inf to 1: give uint8"),
        ],
    )
    def test_range(self, tmp_path, low, high, message):
        """Wherever in the file it is."""
        images = np.full((2000, 2, 2), high, np.float32)
        images[1999, 1, 1] = low
        with pytest.raises(HemstitchError, match=message):
            Arrays(npy(tmp_path / "x.npy", images))

    @pytest.mark.parametrize("suffix", ["npz", "npy"])
    def test_nothing_is_unpickled(self, tmp_path, suffix):
        objects = np.array([Trap()], dtype=object)
        path = npz(tmp_path / "x.npz", images=objects) if suffix == "npz" else npy(tmp_path / "x.npy", objects)
        with pytest.raises(HemstitchError, match=r"cannot be read as arrays of numbers .*without objects"):
            Arrays(path)

    @pytest.mark.parametrize("name", ["x.npz", "x.npy"])
    @pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x93NUMPY\x01\x00", b"PK\x03\x04"])
    def test_garbage(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(HemstitchError, match=rf"{name} cannot be read as arrays of numbers"):
            Arrays(tmp_path / name)

    @pytest.mark.parametrize("suffix", ["npz", "npy"])
    def test_cut_short(self, tmp_path, suffix):
        whole = io.BytesIO()
        (np.savez if suffix == "npz" else np.save)(whole, pixels(9, 8, 8))
        (tmp_path / f"x.{suffix}").write_bytes(whole.getvalue()[:400])
        with pytest.raises(HemstitchError, match=rf"x.{suffix} cannot be read as arrays of numbers"):
            Arrays(tmp_path / f"x.{suffix}")

    def test_damaged_inside(self, tmp_path):
        path = tmp_path / "x.npz"
        np.savez_compressed(path, images=pixels(9, 8, 8))
        whole = bytearray(path.read_bytes())
        whole[300] ^= 0xFF
        path.write_bytes(bytes(whole))
        with pytest.raises(HemstitchError, match=r"x.npz cannot be read as arrays of numbers"):
            Arrays(path)

    def test_labels_beside_it_are_named(self, tmp_path):
        (tmp_path / "labels.npy").write_bytes(b"what")
        with pytest.raises(HemstitchError, match=r"labels.npy cannot be read as arrays"):
            Arrays(npy(tmp_path / "x.npy", pixels(3, 8, 8)))
