"""A folder of images: what is found, how every kind of file is decoded, and what broken ones do."""

import io
import os
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from hemstitch.data import ImageFolder, open_dataset
from hemstitch.data.decoded import _square
from hemstitch.errors import HemstitchError, MissingExtraError


def save(path, colour=(255, 0, 0), size=(12, 10), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def truncated(path, seed=0):
    """A png whose header is sound and whose pixels end early."""
    whole = io.BytesIO()
    Image.fromarray(noise(40, 40, seed)).save(whole, "png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    return path


def tree(path, counts, size=(12, 10)):
    """Class folders with so many images each, every image of its own grey."""
    value = 0
    for name, count in counts.items():
        for i in range(count):
            save(path / name / f"{i:03}.png", (value % 256,) * 3, size)
            value += 1
    return path


def levels(data, *index):
    """The first pixel's 8-bit value of each image."""
    images = data.images(torch.tensor(index))
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def only(folder, size=8):
    """The single image of a folder, (3, size, size) as 8-bit values."""
    return ((ImageFolder(folder, size).images(torch.tensor([0]))[0] + 1) * 127.5).round().int()


class TestFinding:
    def test_classes_labels_and_order(self, tmp_path):
        tree(tmp_path, {"b": 2, "A": 1, "10": 1, "9": 3})
        data = ImageFolder(tmp_path, 8)
        assert data.classes == ("10", "9", "A", "b")
        assert data.labels.dtype == torch.int64
        assert data.labels.tolist() == [0, 1, 1, 1, 2, 3, 3]
        assert len(data) == 7
        # tree() gave its greys in the order b, A, 10, 9
        assert levels(data, *range(7)) == [3, 4, 5, 6, 2, 0, 1]

    def test_contract(self, tmp_path):
        data = ImageFolder(tree(tmp_path / "flowers", {"a": 1, "b": 1}), 8)
        assert (data.name, data.channels, data.size, data.flippable) == ("folder:flowers", 3, 8, True)
        spec = data.spec(null_label=True)
        assert (spec.shape, spec.num_classes, spec.null_label, spec.space) == ((3, 8, 8), 2, True, data.name)
        assert data.broken == []

    def test_name_of_a_relative_path(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tree(tmp_path / "flowers", {"a": 1}))
        assert ImageFolder(".", 8).name == "folder:flowers"

    def test_suffixes_in_any_case_at_any_depth(self, tmp_path):
        for name in ("a.PNG", "b.jpg", "deep/c.JPEG", "deep/er/d.WebP", "deep-sea/e.png"):
            save(tmp_path / "one" / name, (90, 90, 90))
        (tmp_path / "one" / "notes.txt").write_text("not one of them")
        assert len(ImageFolder(tmp_path, 8)) == 5

    def test_hidden_is_passed_over(self, tmp_path):
        tree(tmp_path, {"a": 2, ".thumbnails": 3})
        save(tmp_path / "a" / ".cache" / "x.png")
        save(tmp_path / "a" / "._000.png")
        save(tmp_path / ".cover.png")
        data = ImageFolder(tmp_path, 8)
        assert (data.classes, len(data)) == (("a",), 2)

    def test_a_folder_named_like_an_image_is_a_class(self, tmp_path):
        tree(tmp_path, {"scans.png": 2})
        assert ImageFolder(tmp_path, 8).classes == ("scans.png",)

    def test_links_in_a_circle(self, tmp_path):
        tree(tmp_path / "data", {"a": 2})
        tree(tmp_path / "elsewhere", {"more": 1})
        os.symlink(tmp_path / "data" / "a", tmp_path / "data" / "a" / "again")
        os.symlink(tmp_path / "elsewhere" / "more", tmp_path / "data" / "a" / "more")
        assert len(ImageFolder(tmp_path / "data", 8)) == 3

    def test_unlabelled(self, tmp_path):
        for i in (2, 0, 1):
            save(tmp_path / f"{i}.png", (i, i, i))
        data = ImageFolder(tmp_path, 8)
        assert data.classes == ()
        assert data.labels.tolist() == [0, 0, 0]
        assert levels(data, 0, 1, 2) == [0, 1, 2]
        assert not data.spec(null_label=True).null_label

    def test_by_name(self, tmp_path):
        assert len(open_dataset("folder", str(tree(tmp_path, {"a": 2})), 8)) == 2


class TestDecoding:
    def test_shape_range_and_layout(self, tmp_path):
        tree(tmp_path, {"a": 2})
        save(tmp_path / "a" / "000.png", (255, 0, 51))
        images = ImageFolder(tmp_path, 8).images(torch.tensor([0, 1]))
        assert (images.shape, images.dtype, images.is_contiguous()) == ((2, 3, 8, 8), torch.float32, True)
        torch.testing.assert_close(images[0, :, 3, 3], torch.tensor([1.0, -1.0, -0.6]))
        assert images.amin() >= -1
        assert images.amax() <= 1

    def test_no_rows(self, tmp_path):
        data = ImageFolder(tree(tmp_path, {"a": 1}), 8)
        assert data.images(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 8, 8)

    def test_order_is_kept_and_repeats(self, tmp_path):
        data = ImageFolder(tree(tmp_path, {"a": 30, "b": 30}), 8)
        index = [*torch.randperm(60, generator=torch.Generator().manual_seed(0)).tolist(), 5, 5, 59, -1]
        assert levels(data, *index) == [i % 60 for i in index]
        torch.testing.assert_close(data.images(torch.tensor(index)), data.images(torch.tensor(index)), rtol=0, atol=0)

    def test_greyscale(self, tmp_path):
        save(tmp_path / "x.png", 77, mode="L")
        assert (only(tmp_path) == 77).all()

    def test_one_bit(self, tmp_path):
        save(tmp_path / "x.png", 1, mode="1")
        assert (only(tmp_path) == 255).all()

    @pytest.mark.parametrize("value", [0, 300, 32768, 65535])
    def test_sixteen_bit_grey_keeps_its_range(self, tmp_path, value):
        Image.fromarray(np.full((9, 9), value, np.uint16)).save(tmp_path / "x.png")
        assert (only(tmp_path) == round(value / 257)).all()

    def test_palette(self, tmp_path):
        image = Image.new("P", (9, 9), 1)
        image.putpalette([0, 0, 0, 10, 20, 30])
        image.save(tmp_path / "x.png")
        assert only(tmp_path)[:, 4, 4].tolist() == [10, 20, 30]

    def test_palette_with_a_clear_colour_is_laid_on_white(self, tmp_path):
        image = Image.new("P", (9, 9), 1)
        image.putpalette([0, 0, 0, 10, 20, 30])
        image.save(tmp_path / "x.png", transparency=1)
        assert (only(tmp_path) == 255).all()

    @pytest.mark.parametrize(
        ("mode", "colour", "expected"),
        [
            ("RGBA", (200, 100, 0, 255), [200, 100, 0]),
            ("RGBA", (200, 100, 0, 0), [255, 255, 255]),
            ("RGBA", (200, 100, 0, 51), [244, 224, 204]),
            ("LA", (100, 51), [224, 224, 224]),
        ],
    )
    @pytest.mark.parametrize("suffix", ["png", "webp"])
    def test_alpha_is_laid_on_white(self, tmp_path, mode, colour, expected, suffix):
        options = {"lossless": True, "exact": True} if suffix == "webp" else {}
        save(tmp_path / f"x.{suffix}", colour, mode=mode, **options)
        assert only(tmp_path)[:, 4, 4].tolist() == expected

    def test_cmyk_jpeg(self, tmp_path):
        save(tmp_path / "x.jpg", (0, 255, 255, 0), mode="CMYK", quality=95)
        red, green, blue = only(tmp_path)[:, 4, 4].tolist()
        assert red > 240
        assert max(green, blue) < 15

    @pytest.mark.parametrize("turn", range(1, 9))
    @pytest.mark.parametrize("suffix", ["jpg", "png"])
    def test_orientation_of_the_camera(self, tmp_path, turn, suffix):
        """Only the top left quarter of the upright image is white."""
        upright = np.zeros((16, 16, 3), np.uint8)
        upright[:8, :8] = 255
        stored = {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.transpose(1, 0, 2),
            6: np.rot90(upright, 1),
            7: np.rot90(upright[:, ::-1], -1),
            8: np.rot90(upright, -1),
        }[turn]
        exif = Image.Exif()
        exif[0x0112] = turn
        image = Image.fromarray(np.ascontiguousarray(stored))
        image.save(tmp_path / f"x.{suffix}", exif=exif, **({"quality": 95} if suffix == "jpg" else {}))
        quarters = only(tmp_path, 16)[0, [2, 2, 13, 13], [2, 13, 2, 13]]
        assert (quarters > 200).tolist() == [True, False, False, False]

    def test_a_garbled_orientation_is_no_reason_to_lose_the_image(self, tmp_path):
        save(tmp_path / "x.jpg", (50, 50, 50), exif=b"Exif\0\0garbled beyond repair")
        assert (only(tmp_path) - 50).abs().max() <= 1

    def test_middle_square_of_a_wide_and_a_tall_image(self, tmp_path):
        for name, axis in (("wide.png", 1), ("tall.png", 0)):
            pixels = np.zeros((24, 24, 3), np.uint8).repeat(3, axis)
            middle = [slice(None)] * 2
            middle[axis] = slice(24, 48)
            pixels[tuple(middle)] = 255
            folder = tmp_path / name
            folder.mkdir()
            Image.fromarray(pixels).save(folder / name)
            assert only(folder, 24).float().mean() == 255

    @pytest.mark.parametrize(("width", "height"), [(64, 64), (65, 64), (8, 8), (200, 133), (5, 7), (1, 1)])
    def test_every_size_comes_out_square(self, tmp_path, width, height):
        Image.fromarray(noise(width, height)).save(tmp_path / "x.png")
        assert only(tmp_path, 16).shape == (3, 16, 16)

    def test_big_images_are_averaged_down_then_bicubic(self):
        """Of a power of two the result is the plain mean of blocks; between, bicubic takes the rest."""
        pixels = noise(64, 64)
        halved = np.asarray(_square(Image.fromarray(pixels), 16)).astype(float)
        means = pixels.reshape(16, 4, 16, 4, 3).mean((1, 3))
        assert np.abs(halved - means).max() <= 2  # each halving rounds twice, once per axis
        smaller = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BOX)
        expected = smaller.resize((20, 20), Image.Resampling.BICUBIC)
        assert np.array_equal(np.asarray(_square(Image.fromarray(pixels), 20)), np.asarray(expected))

    def test_the_right_size_is_left_alone(self):
        pixels = noise(16, 16)
        assert np.array_equal(np.asarray(_square(Image.fromarray(pixels), 16)), pixels)

    def test_a_thin_strip_does_not_fill_the_memory(self, tmp_path):
        Image.new("RGB", (60000, 1), (9, 9, 9)).save(tmp_path / "x.png")
        assert (only(tmp_path, 64) == 9).all()


class TestRefused:
    @pytest.mark.parametrize("size", [0, -1])
    def test_size(self, tmp_path, size):
        with pytest.raises(HemstitchError, match="size is the side of the images to give"):
            ImageFolder(tree(tmp_path, {"a": 1}), size)

    def test_crop(self, tmp_path):
        with pytest.raises(HemstitchError, match="crop is 'centre', not 'random'"):
            ImageFolder(tree(tmp_path, {"a": 1}), 8, crop="random")

    def test_missing(self, tmp_path):
        with pytest.raises(HemstitchError, match="nowhere does not exist: give the folder"):
            ImageFolder(tmp_path / "nowhere", 8)

    def test_a_file(self, tmp_path):
        with pytest.raises(HemstitchError, match="is a file: give the folder"):
            ImageFolder(save(tmp_path / "x.png"), 8)

    @pytest.mark.parametrize("inside", [[], ["notes.txt"], ["a/", "b/"], ["a/notes.txt"], [".x.png"]])
    def test_no_images(self, tmp_path, inside):
        for name in inside:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("")
        with pytest.raises(HemstitchError, match=r"no images in .*put a folder of images per class there"):
            ImageFolder(tmp_path, 8)

    def test_an_empty_class(self, tmp_path):
        tree(tmp_path, {"a": 1})
        (tmp_path / "hollow").mkdir()
        (tmp_path / "void").mkdir()
        with pytest.raises(HemstitchError, match=r"without images: .*hollow, .*void; remove them, or put"):
            ImageFolder(tmp_path, 8)

    def test_images_beside_folders(self, tmp_path):
        save(tree(tmp_path, {"a": 1}) / "loose.png")
        with pytest.raises(HemstitchError, match=r"images \(loose.png, …\) beside folders \(a, …\): move"):
            ImageFolder(tmp_path, 8)

    def test_a_link_to_nothing_is_not_a_broken_image(self, tmp_path):
        save(tmp_path / "x.png")
        os.symlink(tmp_path / "gone.png", tmp_path / "y.png")
        with pytest.raises(HemstitchError, match=r"y.png cannot be read \(No such file or directory\)"):
            ImageFolder(tmp_path, 8)

    def test_a_file_gone_since_is_not_a_broken_image(self, tmp_path):
        data = ImageFolder(tree(tmp_path, {"a": 2}), 8)
        (tmp_path / "a" / "000.png").unlink()
        with pytest.raises(HemstitchError, match=r"000.png cannot be read \(No such file or directory\)"):
            data.images(torch.tensor([0]))

    def test_without_pillow(self, tmp_path, monkeypatch):
        for name in ("PIL", "PIL.Image", "PIL.ImageOps"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtraError, match=r"pillow is needed .*hemstitch\[data\]"):
            ImageFolder(tmp_path, 8)


def claims_to_be_huge(path):
    """A png of a few bytes that says it is 60,000 pixels square."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels))


def bitmap(path):
    Image.new("RGB", (9, 9)).save(path, "bmp")


def postscript(path):
    Image.new("RGB", (9, 9)).save(path, "eps")


class TestBroken:
    @pytest.mark.parametrize(
        "spoil",
        [
            lambda path: path.write_bytes(b""),
            lambda path: path.write_text("<html>404</html>"),
            lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0"),
            claims_to_be_huge,
            bitmap,
            postscript,
        ],
        ids=["empty", "html", "header cut", "bomb", "bmp", "eps"],
    )
    def test_header(self, tmp_path, spoil):
        tree(tmp_path, {"a": 3, "b": 2})
        bad = tmp_path / "a" / "001.png"
        spoil(bad)
        with pytest.warns(UserWarning, match=r"1 of 5 images in .* are broken and left out: .*001.png$"):
            data = ImageFolder(tmp_path, 8)
        assert data.broken == [bad]
        assert data.labels.tolist() == [0, 0, 1, 1]
        assert levels(data, 0, 1, 2, 3) == [0, 2, 3, 4]

    def test_one_warning_names_the_first_few(self, tmp_path, monkeypatch):
        monkeypatch.setattr("hemstitch.data.decoded._NAMED", 2)
        tree(tmp_path, {"a": 9})
        for i in range(1, 4):
            (tmp_path / "a" / f"{i:03}.png").write_bytes(b"")
        with pytest.warns(UserWarning, match=r"3 of 9 .*001.png, .*002.png and 1 more$") as caught:
            data = ImageFolder(tmp_path, 8)
        assert len(caught) == 1
        assert len(data.broken) == 3

    def test_more_than_one_in_a_hundred_is_refused(self, tmp_path):
        tree(tmp_path, {"a": 9})
        for i in range(1, 5):
            (tmp_path / "a" / f"{i:03}.png").write_bytes(b"")
        with pytest.raises(HemstitchError, match=r"more than 1% of the images in .* are broken, 4 of 9: .*001.png"):
            ImageFolder(tmp_path, 8)

    def test_a_class_of_broken_files(self, tmp_path):
        tree(tmp_path, {"a": 3, "b": 2})
        for name in ("000.png", "001.png"):
            (tmp_path / "b" / name).write_bytes(b"")
        with pytest.raises(HemstitchError, match=r"every image in .*b is broken: .*000.png, .*001.png; replace"):
            ImageFolder(tmp_path, 8)

    def test_unlabelled_and_all_broken(self, tmp_path):
        (tmp_path / "x.png").write_bytes(b"")
        with pytest.raises(HemstitchError, match=r"every image in .* is broken"):
            ImageFolder(tmp_path, 8)

    def test_cut_short_gives_the_next_of_its_class(self, tmp_path):
        """And the same ever after, whatever was asked before."""
        tree(tmp_path, {"a": 3, "b": 3})
        cut = [truncated(tmp_path / "a" / "002.png"), truncated(tmp_path / "b" / "000.png")]
        data = ImageFolder(tmp_path, 8)
        assert data.broken == []
        with pytest.warns(UserWarning, match=r"1 of the images .* cannot be decoded, .*a/002.png$"):
            assert levels(data, 0, 2, 2, 1) == [
                0,
                0,
                0,
                1,
            ]  # round to the first of class a, not on to class b
        with pytest.warns(UserWarning, match=r"b/000.png$"):
            assert levels(data, 3) == [4]
        assert data.broken == cut
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert levels(data, 2, 3, 5) == [0, 4, 5]
        assert data.broken == cut
        again = ImageFolder(tmp_path, 8)
        with pytest.warns(UserWarning, match="2 of the images"):
            assert levels(again, *range(6)) == [0, 1, 0, 4, 4, 5]

    def test_a_jpeg_cut_short(self, tmp_path):
        Image.fromarray(noise(64, 64)).save(tmp_path / "a.jpg")
        os.truncate(tmp_path / "a.jpg", 2000)
        save(tmp_path / "b.png", (7, 7, 7))
        data = ImageFolder(tmp_path, 8)
        with pytest.warns(UserWarning, match=r"cannot be decoded.*a\.jpg"):
            assert levels(data, 0, 1) == [7, 7]
        assert data.broken == [tmp_path / "a.jpg"]

    def test_a_webp_cut_short_shows_when_the_folder_is_opened(self, tmp_path):
        """Its reader wants the whole file before it tells the size."""
        Image.fromarray(noise(64, 64)).save(tmp_path / "a.webp")
        os.truncate(tmp_path / "a.webp", 2000)
        save(tmp_path / "b.png", (7, 7, 7))
        with pytest.warns(UserWarning, match=r"left out.*a\.webp"):
            data = ImageFolder(tmp_path, 8)
        assert data.broken == [tmp_path / "a.webp"]

    def test_pixels_damaged_in_the_middle(self, tmp_path):
        save(tmp_path / "b.png", (7, 7, 7))
        whole = io.BytesIO()
        Image.fromarray(noise(40, 40)).save(whole, "png")
        damaged = bytearray(whole.getvalue())
        damaged[len(damaged) // 2] ^= 0xFF
        (tmp_path / "a.png").write_bytes(bytes(damaged))
        with pytest.warns(UserWarning, match="a.png"):
            assert levels(ImageFolder(tmp_path, 8), 0) == [7]

    def test_a_class_that_cannot_be_decoded_at_all(self, tmp_path):
        tree(tmp_path, {"a": 3})
        truncated(tmp_path / "b" / "000.png")
        with pytest.raises(HemstitchError, match=r"no image in .*b can be decoded: replace them or remove"):
            ImageFolder(tmp_path, 8).images(torch.tensor([3]))

    def test_three_may_fail_in_a_small_set_and_no_more(self, tmp_path, monkeypatch):
        monkeypatch.setattr("hemstitch.data.decoded._NAMED", 3)
        tree(tmp_path, {"a": 8})
        for i in range(4):
            truncated(tmp_path / "a" / f"{i:03}.png")
        data = ImageFolder(tmp_path, 8)
        with pytest.warns(UserWarning, match="3 of the images"):
            data.images(torch.tensor([1]))
        with pytest.raises(
            HemstitchError,
            match=r"more than 1% of the images .* 4 of 8 so far: .*000.png, .* and 1 more; check how",
        ):
            data.images(torch.tensor([0]))

    def test_one_percent_may_fail_in_a_large_set(self, tmp_path):
        tree(tmp_path, {"a": 400}, size=(2, 2))
        for i in range(5):
            truncated(tmp_path / "a" / f"{i * 7:03}.png", i)
        data = ImageFolder(tmp_path, 2)
        with pytest.warns(UserWarning, match="4 of the images"):
            data.images(torch.arange(28))
        with pytest.raises(HemstitchError, match="5 of 400"):
            data.images(torch.arange(28, 400))
