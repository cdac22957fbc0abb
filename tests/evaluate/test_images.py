"""Sets of pictures: what each source gives, that all give the same, and that bad ones are refused by name."""

import io
import os
import resource
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from hemstitch.data import Digits, ImageFolder, Shards
from hemstitch.data.latents import Index
from hemstitch.encode import encode
from hemstitch.errors import HemstitchError
from hemstitch.evaluate.images import ContentHash, TensorImages, content, open_images
from hemstitch.evaluate.pictures import to_uint8

N, SIDE = 7, 8


def noise(count=N, height=SIDE, width=SIDE, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def encoded(pixels, kind="png", **options):
    whole = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(whole, kind, **options)
    return whole.getvalue()


def folder(path, pixels, name="{:03}.png"):
    for i, one in enumerate(pixels):
        file = path / name.format(i)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(one))
    return path


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def samples(pixels, labels=True):
    for i, one in enumerate(pixels):
        yield f"{i:03}.png", encoded(one)
        if labels:
            yield f"{i:03}.cls", str(i % 3).encode()


def all_of(images, batch=3, start=0):
    return torch.cat(list(images.batches(batch, start)))


def chw(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)


def refused(source, *words, **options):
    """The message that a source is refused with when it is opened, which has all these words."""
    with pytest.raises(HemstitchError) as caught:
        open_images(source, **options)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    return message


def written(path, kind, pixels):
    """The same pictures in one of the forms."""
    path.mkdir(exist_ok=True)
    if kind == "folder":
        return folder(path / "pngs", pixels)
    if kind in ("npz", "npz of grey"):
        np.savez(path / "x.npz", pixels)
        return path / "x.npz"
    if kind == "compressed":
        np.savez_compressed(path / "c.npz", pixels)
        return path / "c.npz"
    if kind == "npy":
        np.save(path / "x.npy", pixels)
        return path / "x.npy"
    if kind == "tar":
        return tar(path / "x.tar", samples(pixels))
    half = len(pixels) // 2
    tar(path / "tars" / "x-0.tar", samples(pixels[:half]))
    tar(path / "tars" / "x-1.tar", samples(pixels[half:]))
    return path / "tars" if kind == "tars" else path / "tars" / "x-{0..1}.tar"


KINDS = ("folder", "npz", "compressed", "npy", "tar", "tars", "pattern")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_form_gives_the_same_pictures_and_the_same_hash(tmp_path, kind, channels):
    pixels = noise(height=6, channels=channels)
    images = open_images(written(tmp_path, kind, pixels), grey=channels == 1)
    assert (len(images), images.size, images.grey) == (N, (6, SIDE), channels == 1)
    for batch, start in [(3, 0), (N, 0), (100, 0), (2, 4), (1, N)]:
        parts = list(images.batches(batch, start))
        assert all(len(part) == batch for part in parts[:-1])
        whole = torch.cat([*parts, torch.empty(0, 3, 6, SIDE, dtype=torch.uint8)])
        assert whole.dtype == torch.uint8
        assert torch.equal(whole, chw(pixels)[start:])
    direct = ContentHash((6, SIDE))
    direct.update(chw(pixels))
    assert content(images, batch=2) == direct.hexdigest()


def test_the_hash_knows_order_size_and_pixels(tmp_path):
    pixels = noise()
    hashes = set()
    for i, one in enumerate([pixels, pixels[::-1], pixels.reshape(N, SIDE // 2, SIDE * 2, 3), pixels ^ 1, pixels[:-1]]):
        np.save(tmp_path / f"{i}.npy", np.ascontiguousarray(one))
        hashes.add(content(open_images(tmp_path / f"{i}.npy")))
    assert len(hashes) == 5
    with pytest.raises(HemstitchError, match=r"uint8 \(B, 3, 8, 8\)"):
        ContentHash((8, 8)).update(torch.zeros(1, 3, 8, 8))


def test_a_reader_may_stop_early(tmp_path):
    np.save(tmp_path / "x.npy", noise(64))
    images = open_images(tmp_path / "x.npy")
    parts = images.batches(2)
    assert torch.equal(next(parts), all_of(images)[:2])
    parts.close()
    for bad in ((0, 0), (1, -1), (1, 65)):
        with pytest.raises(HemstitchError, match="at least 1 picture"):
            images.batches(*bad)


def test_folders_go_by_relative_path(tmp_path):
    pixels = noise(5)
    names = ["b/1.png", "a/z/2.png", "a-b/3.webp", "a/1.JPG", "b/0.jpeg"]
    for name, one in zip(names, pixels, strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        kind = {"png": "png", "webp": "webp", "JPG": "jpeg", "jpeg": "jpeg"}[name.rpartition(".")[2]]
        (tmp_path / name).write_bytes(encoded(one, kind, **({"lossless": True} if kind == "webp" else {})))
    for name in (".hidden.png", ".cache/0.png", "labels.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(noise(1, 4, 4)[0]))
    (tmp_path / "b" / "again").symlink_to(tmp_path)  # a circle
    images = open_images(tmp_path)
    assert len(images) == 5
    assert images.labels.tolist() == [1, 0, 0, 2, 2]  # of a-b/3, a/1, a/z/2, b/0, b/1
    assert images.classes == ("a", "a-b", "b")
    assert torch.equal(all_of(images)[[0, 2, 4]], chw(pixels[[2, 1, 0]]))


def test_what_is_beside_samples_is_passed_over_and_classes_of_those_names_are_not(tmp_path):
    def classes():
        labels = open_images(tmp_path / "x").labels
        return None if labels is None else labels.tolist()

    for name in ("cats", "features", "manifest"):
        folder(tmp_path / "x" / name, noise(2))
    assert open_images(tmp_path / "x").classes == ("cats", "features", "manifest")
    assert classes() == [0, 0, 1, 1, 2, 2]
    (tmp_path / "x" / "manifest" / "settings.json").write_text("{}")
    assert open_images(tmp_path / "x").classes == ("cats",)
    assert classes() == [0, 0]
    folder(tmp_path / "x" / "cats" / "manifest", noise(1))  # which is not at the top
    assert classes() == [0, 0, 0]
    folder(tmp_path / "x", noise(1), "grid.png")
    assert len(open_images(tmp_path / "x")) == 4
    assert classes() is None


def test_files_named_by_numbers_go_by_number(tmp_path):
    names = ["9", "10", "a", "1000000", "999999", "9-1", "b/10", "b/9", "07", "7"]
    pixels = dict(zip(names, noise(len(names)), strict=True))
    for name, one in pixels.items():
        folder(tmp_path, [one], f"{name}.png")
    # 9-1 and a are where plain order has them
    sought = ["07", "7", "9", "10", "9-1", "999999", "1000000", "a", "b/9", "b/10"]
    assert torch.equal(all_of(open_images(tmp_path)), chw(np.stack([pixels[name] for name in sought])))
    folder(tmp_path / "deep", noise(12), "{}/0.png")  # folders are not files
    order = [int(name) for name in sorted(map(str, range(12)))]
    assert torch.equal(all_of(open_images(tmp_path / "deep")), chw(noise(12)[order]))


def test_numbers_as_names_of_folders_are_the_labels(tmp_path):
    for label in (0, 1, 2, 4, 10):
        folder(tmp_path / "x" / str(label), noise(2))
    images = open_images(tmp_path / "x")
    assert images.labels.tolist() == [0, 0, 1, 1, 10, 10, 2, 2, 4, 4]
    assert images.classes == ()
    folder(tmp_path / "padded", noise(3), "00{}/x/y.png")
    assert open_images(tmp_path / "padded").labels.tolist() == [0, 1, 2]
    folder(tmp_path / "x" / "other", noise(1))
    images = open_images(tmp_path / "x")
    assert images.classes == ("0", "1", "10", "2", "4", "other")
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    folder(tmp_path / "padded", noise(1), "1/x.png")
    refused(tmp_path / "padded", "named by one number (001, 1)", "into one folder")
    folder(tmp_path / "long", noise(2), "1234567890123456789{}/x.png")
    assert open_images(tmp_path / "long").labels.tolist() == [0, 1]


def test_a_subset_of_the_digits_keeps_its_labels(tmp_path):
    digits = Digits("test")
    pixels = to_uint8(digits.images(torch.arange(len(digits)))).permute(0, 2, 3, 1).numpy()
    for label in range(10):
        if label != 3:
            folder(tmp_path / str(label), pixels[digits.labels == label])
    images = open_images(tmp_path, grey=True)
    expected = digits.labels[digits.labels != 3].sort().values
    assert torch.equal(images.labels, expected)


def test_labels(tmp_path):
    assert open_images(folder(tmp_path / "flat", noise())).labels is None
    mixed = folder(tmp_path / "mixed", noise(2), "c/{}.png")
    folder(mixed, noise(1))
    assert open_images(mixed).labels is None
    assert open_images(mixed).classes == ()
    assert open_images(tar(tmp_path / "a.tar", samples(noise()))).labels.tolist() == [i % 3 for i in range(N)]
    assert open_images(tar(tmp_path / "b.tar", samples(noise(), labels=False))).labels is None
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", noise(), np.arange(N, dtype=np.int32))
        labels = open_images(tmp_path / "x.npz").labels
        assert labels.dtype == torch.int64
        assert labels.tolist() == list(range(N))


def test_palettes_and_one_bit_pictures_come_out_exactly(tmp_path):
    plain = noise(2, 4, 4)
    Image.fromarray(plain[0]).quantize(16).save(tmp_path / "0.png")  # 16 pixels: its colours as they are
    Image.fromarray(plain[1]).save(tmp_path / "1.png")
    assert Image.open(tmp_path / "0.png").mode == "P"
    assert torch.equal(all_of(open_images(tmp_path)), chw(plain))
    bits = tmp_path / "bits"
    bits.mkdir()
    for i in range(2):
        Image.fromarray(plain[i, :, :, 0] > 127).save(bits / f"{i}.png")
    got = all_of(open_images(bits, grey=True))
    assert torch.equal(got, chw(((plain[..., :1] > 127) * 255).astype(np.uint8)))


def test_three_dimensions_are_grey(tmp_path):
    np.savez(tmp_path / "x.npz", noise(channels=1).squeeze(-1))
    assert torch.equal(all_of(open_images(tmp_path / "x.npz", grey=True)), chw(noise(channels=1)))


def test_data_sets_by_name(tmp_path):
    digits = Digits("train")
    images = open_images("digits", grey=True)
    assert torch.equal(images.labels, digits.labels)
    assert images.classes == ()  # its names are the labels
    expected = to_uint8(digits.images(torch.arange(100))).expand(-1, 3, -1, -1)
    assert torch.equal(next(images.batches(100)), expected)

    folder(tmp_path / "pngs", noise(height=12, width=20), "c{}/x.png")
    images = open_images(f"folder:{tmp_path / 'pngs'}", size=6)
    assert (images.size, len(images), images.labels.tolist()) == ((6, 6), N, list(range(N)))
    assert images.classes == ImageFolder(tmp_path / "pngs", 6).classes == tuple(f"c{i}" for i in range(N))
    tar(tmp_path / "x.tar", samples(noise()))
    images = open_images(f"shards:{tmp_path / 'x.tar'}", size=SIDE)
    data = Shards(tmp_path / "x.tar", SIDE)
    assert torch.equal(all_of(images), to_uint8(data.images(torch.arange(N))))
    assert torch.equal(all_of(images), chw(noise()))

    os.symlink(tmp_path / "pngs", tmp_path / "digits")
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        assert len(open_images("./digits")) == N
    finally:
        os.chdir(here)


def test_a_cache_of_pixels_will_do_and_latents_will_not(tmp_path):
    list(encode(Digits("test"), tmp_path / "x", normalise="measured", batch=64, device="cpu"))
    images = open_images(f"latents:{tmp_path / 'x'}", grey=True)
    test = Digits("test")
    assert torch.equal(all_of(images, 64), to_uint8(test.images(torch.arange(len(test)))).expand(-1, 3, -1, -1))

    index = tmp_path / "x" / "index.json"
    space = Index.read(index).space
    text = index.read_text().replace('"identity"', '"0123456789ab"')
    index.write_text(text.replace(space, space.replace(":identity:", ":0123456789ab:")))
    refused(f"latents:{tmp_path / 'x'}", "latents of", "folder:PATH")
    refused(tmp_path / "x", "holds latents", "latents:")


def test_what_stands_in_for_broken_images_in_training_is_refused_here(tmp_path):
    pngs = folder(tmp_path / "pngs", noise(20))
    whole = (pngs / "003.png").read_bytes()
    (pngs / "003.png").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="left out"):
        refused(f"folder:{pngs}", "003.png", "replace", size=SIDE)
    (pngs / "003.png").write_bytes(whole[: len(whole) // 2])
    images = open_images(f"folder:{pngs}", size=SIDE)
    with pytest.warns(UserWarning, match="stand in"), pytest.raises(HemstitchError, match=r"003\.png; replace"):
        list(images.batches(20))


PIXEL = noise(1)[0]
ALPHA = np.concatenate([PIXEL, PIXEL[..., :1]], -1)


def saved(image, kind="png", **options):
    whole = io.BytesIO()
    image.save(whole, kind, **options)
    return whole.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(PIXEL), "jpeg", exif=exif)


def deep_rgb():
    """A PNG of 16 bits per channel, which pillow opens as if it had 8."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(SIDE * 6) for _ in range(SIDE))
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


BAD = {
    "nothing at all": (b"", "cannot be read", "replace"),
    "text": (b"not a picture", "cannot be read", "replace"),
    "another format": (saved(Image.fromarray(PIXEL), "gif"), "cannot be read", "replace"),
    "16 bits of grey": (saved(Image.fromarray(PIXEL[..., 0].astype(np.uint16) * 257)), "16 bits", "with 8"),
    "16 bits of RGB": (deep_rgb(), "16 bits", "with 8"),
    "alpha": (saved(Image.fromarray(ALPHA)), "transparency", "RGB"),
    "grey with alpha": (saved(Image.fromarray(ALPHA).convert("LA")), "transparency", "RGB"),
    "a palette with transparency": (saved(Image.fromarray(PIXEL).quantize(8), transparency=0), "transparency", "RGB"),
    "a transparent colour": (saved(Image.fromarray(PIXEL), transparency=(0, 0, 0)), "transparency", "RGB"),
    "CMYK": (saved(Image.fromarray(PIXEL).convert("CMYK"), "jpeg"), "CMYK", "convert"),
    "turned": (turned(), "EXIF", "as they are to be seen"),
    "animated": (
        saved(Image.fromarray(PIXEL), "webp", save_all=True, append_images=[Image.fromarray(255 - PIXEL)]),
        "several frames",
        "save one",
    ),
    "grey": (encoded(PIXEL[..., :1]), "greyscale", "convert them to RGB"),
    "another size": (
        encoded(noise(1, 9, 5)[0]),
        "2 sizes",
        "9 x 5",
        "folder:PATH with --size SIDE (of a reference: --reference-size SIDE)",
    ),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_bad_files_are_named_with_what_to_do(tmp_path, what, kind):
    data, *words = BAD[what]
    folder(tmp_path / "x", noise())
    (tmp_path / "x" / "bad.png").write_bytes(data)
    source = tmp_path / "x"
    if kind == "tar":
        source = tar(tmp_path / "x.tar", [(file.name, file.read_bytes()) for file in sorted(source.iterdir())])
    refused(source, "bad.png", str(source), f"of the {N + 1} pictures", *words)


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    folder(tmp_path, noise())
    (tmp_path / "a.png").write_bytes(BAD["alpha"][0])
    (tmp_path / "b.png").write_bytes(BAD["alpha"][0])
    (tmp_path / "c.png").write_bytes(BAD["another size"][0])
    refused(tmp_path, "2 have transparency (a.png, b.png)", "8 x 8 (9, as 000.png), 9 x 5 (1, as c.png)")


def test_a_broken_picture_does_not_make_grey_ones_wrong(tmp_path):
    folder(tmp_path, noise(channels=1))
    (tmp_path / "bad.png").write_bytes(b"")
    message = refused(tmp_path, "1 cannot be read as png, jpeg or webp (bad.png)", grey=True)
    assert "grey" not in message


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_picture_cut_short_is_an_error_that_names_it(tmp_path, kind):
    pixels = noise(3, 64, 64)
    for i, one in enumerate(pixels):
        (tmp_path / f"{i}.{kind}").write_bytes(encoded(one, kind))
    whole = (tmp_path / f"1.{kind}").read_bytes()
    (tmp_path / f"1.{kind}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HemstitchError, match=rf"1\.{kind}.*replace them|1\.{kind}.*replace it"):
        list(open_images(tmp_path).batches(2))


def test_a_check_reads_every_picture(tmp_path):
    pixels = noise(300)  # more than are read at a time
    for kind in KINDS:
        told = []
        images = open_images(written(tmp_path / kind, kind, pixels))
        images.checked(lambda done, total, told=told: told.append((done, total)))
        assert told == [(256, 300), (300, 300)]
    told = []
    open_images(f"folder:{tmp_path / 'folder'}", size=SIDE).checked(lambda *of: told.append(of))
    assert told[-1] == (300, 300)
    file = tmp_path / "folder" / "pngs" / "299.png"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) - 30])
    with pytest.raises(HemstitchError, match=r"299\.png.*cut short"):
        open_images(tmp_path / "folder").checked()
    with pytest.warns(UserWarning, match="stand in"), pytest.raises(HemstitchError, match=r"299\.png; replace"):
        open_images(f"folder:{tmp_path / 'folder'}", size=SIDE).checked()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_check_compares_checksums(tmp_path, save):
    file = tmp_path / "x.npz"
    save(file, noise(64, 16, 16) // 64)
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    with pytest.raises(HemstitchError, match=r"x\.npz is damaged.*copy it again"):
        open_images(file).checked()


def test_a_tensor(tmp_path):
    for channels in (1, 3):
        pixels = noise(channels=channels, height=6)
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        images = TensorImages(tensor, grey=channels == 1)
        assert (len(images), images.size, images.grey, images.labels, images.name) == (
            N, (6, SIDE), channels == 1, None, "tensor",
        )  # fmt: skip
        np.save(tmp_path / "x.npy", pixels)
        assert content(images) == content(open_images(tmp_path / "x.npy", grey=True))
        assert torch.equal(all_of(images, 3, 2), chw(pixels)[2:])
        before = tensor.clone()
        for part in images.batches(2):
            part.zero_()  # is the reader's own
        assert torch.equal(tensor, before)
        images.checked()
    labels = torch.arange(N, dtype=torch.uint8)
    images = TensorImages(chw(noise()), labels, "mine")
    assert images.labels.dtype == torch.int64
    assert (images.name, images.labels.tolist(), images.classes) == ("mine", list(range(N)), ())


def test_what_is_no_tensor_of_pictures():
    pictures = chw(noise())

    def refused_tensor(*words, images=pictures, labels=None):
        with pytest.raises(HemstitchError) as caught:
            TensorImages(images, labels, "mine")
        for word in ("mine", *words):
            assert word in str(caught.value), caught.value

    refused_tensor("uint8 (N, 3, H, W)", "not float32 (7, 3, 8, 8)", "to_uint8(images)", images=pictures / 127.5 - 1)
    refused_tensor("not int64", "to(torch.uint8)", images=pictures.long())
    refused_tensor("(7, 8, 8, 3)", "permute(0, 3, 1, 2)", images=pictures.permute(0, 2, 3, 1))
    refused_tensor("(3, 8, 8)", images=pictures[0])
    refused_tensor("(7, 3, 8, 0)", images=pictures[..., :0])
    refused_tensor("ndarray", "from_numpy", images=noise())
    refused_tensor("greyscale", "grey=True", images=pictures[:, :1])
    refused_tensor("holds 1 picture", images=pictures[:1])
    refused_tensor("(7,)", "list", labels=[0] * N)
    refused_tensor("not float32", ".long()", labels=torch.zeros(N))
    refused_tensor("not bool", labels=torch.zeros(N, dtype=torch.bool))
    refused_tensor("(6,)", labels=torch.zeros(N - 1, dtype=torch.int64))
    refused_tensor("down to -1", labels=torch.arange(N) - 1)


def test_a_picture_that_changes_under_way(tmp_path):
    images = open_images(folder(tmp_path, noise()))
    for bad in (encoded(noise(1, 4, 4)[0]), encoded(PIXEL[..., :1])):
        (tmp_path / "002.png").write_bytes(bad)
        with pytest.raises(HemstitchError, match=r"002\.png.*changed since"):
            list(images.batches(2))
    (tmp_path / "002.png").unlink()
    with pytest.raises(HemstitchError, match=r"002\.png cannot be read"):
        list(images.batches(2))


def test_grey_is_asked_for_and_sizes_are_held_to(tmp_path):
    refused(folder(tmp_path / "grey", noise(channels=1)), "greyscale", "000.png", "--grey")
    np.savez(tmp_path / "grey.npz", noise(channels=1))
    refused(tmp_path / "grey.npz", "greyscale", "grey.npz", "--grey")
    colour = folder(tmp_path / "colour", noise())
    assert not open_images(colour, grey=True).grey
    assert len(open_images(colour, size=SIDE)) == N
    for kind in ("folder", "npz", "tar"):
        source = written(tmp_path / "w", kind, noise())
        refused(
            source, str(source), "8 x 8", "folder:PATH with --size 16 (of a reference: --reference-size 16)", size=16
        )
    refused("digits", "8 x 8", size=16, grey=True)
    refused(colour, "size is the side", size=-1)


def test_few_or_no_pictures(tmp_path):
    for kind in ("folder", "npz", "compressed", "npy", "tar"):
        source = written(tmp_path / "one", kind, noise(1))
        refused(source, str(source), "holds 1 picture", "two")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty holds no pictures", ".png", "huggingface:PATH")
    refused(tar(tmp_path / "labels.tar", [("1.txt", b"x")]), "labels.tar holds no pictures", "000.png")


def test_what_is_no_source(tmp_path):
    refused(tmp_path / "gone", "gone does not exist", "KIND:PATH")
    refused("imgs-{0000..0002}.tar", "imgs-0000.tar", "correct the pattern")
    (tmp_path / "x.zip").write_bytes(b"")
    refused(tmp_path / "x.zip", "x.zip", "a folder of pictures")
    (tmp_path / "x.tar.gz").write_bytes(b"")
    refused(tmp_path / "x.tar.gz", "x.tar.gz")
    mixed = tmp_path / "mixed"
    tar(mixed / "x.tar", samples(noise()))
    folder(mixed, noise())
    refused(mixed, "x.tar", "000.png", "move the others")
    foreign = folder(tmp_path / "foreign", noise())
    Image.fromarray(PIXEL).save(foreign / "extra.bmp")
    refused(foreign, "extra.bmp", "convert")


def test_tars_that_are_damaged_or_half_labelled(tmp_path):
    whole = tar(tmp_path / "x.tar", samples(noise()))
    os.truncate(whole, whole.stat().st_size // 2)
    refused(whole, "x.tar", "damaged", "copy or write them again")
    members = list(samples(noise()))
    refused(tar(tmp_path / "half.tar", members[:-1]), "no label", "half.tar/006.png", ".cls")
    refused(tar(tmp_path / "lone.tar", [*members, ("x.cls", b"1")]), "lone.tar/x.cls", "no picture")


def test_arrays_that_are_no_pictures(tmp_path):
    def npz(name, *arrays, **named):
        np.savez(tmp_path / name, *arrays, **named)
        return tmp_path / name

    refused(npz("float.npz", noise().astype(np.float32)), "float.npz", "float32", "127.5")
    refused(npz("deep.npz", noise().astype(np.uint16)), "deep.npz", "uint16", "astype('uint8')")
    refused(npz("objects.npz", np.array([PIXEL, None], dtype=object)), "objects.npz", "unpickled", "np.stack")
    refused(npz("first.npz", noise().transpose(0, 3, 1, 2)[..., :5]), "(7, 3, 8, 5)", "first.npz", "np.transpose")
    refused(npz("flat.npz", noise().reshape(N, -1)), "flat.npz", "(N, H, W, 3)")
    refused(npz("four.npz", noise(channels=4)), "four.npz", "(7, 8, 8, 4)")
    refused(npz("columns.npz", np.asfortranarray(noise())), "columns.npz", "ascontiguousarray")
    refused(npz("stats.npz", mu=np.zeros(3), sigma=np.eye(3)), "stats.npz", "statistics", "as the reference")
    refused(npz("images.npz", images=noise()), "images.npz", "arrays:PATH")
    refused(npz("other.npz", x=noise()), "other.npz", "holds x", "np.savez")
    refused(npz("labels.npz", noise(), np.arange(N - 1)), "labels.npz", "(7,)")
    refused(npz("names.npz", noise(), np.array(["a"] * N, dtype=object)), "names.npz", "arr_1", "integers")
    refused(npz("real.npz", noise(), np.zeros(N)), "real.npz", "astype('int64')")
    np.save(tmp_path / "objects.npy", np.array([PIXEL, None], dtype=object))
    refused(tmp_path / "objects.npy", "objects.npy", "unpickled")
    (tmp_path / "pickled.npy").write_bytes(b"\x80\x04N.")
    refused(tmp_path / "pickled.npy", "pickled.npy", "no array of NumPy")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_archives(tmp_path, save):
    file = tmp_path / "x.npz"
    save(file, noise(64, 16, 16) // 64)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(file, "x.npz is damaged", "copy it again")
    file.write_bytes(b"PK")
    refused(file, "x.npz is damaged", "copy it again")
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    with pytest.raises(HemstitchError, match=r"x\.npz is damaged.*copy it again"):
        list(open_images(file).batches(10))


def test_arrays_that_end_early(tmp_path):
    np.save(tmp_path / "x.npy", noise())
    os.truncate(tmp_path / "x.npy", (tmp_path / "x.npy").stat().st_size - 5)
    refused(tmp_path / "x.npy", "x.npy says that it holds 1,344 bytes", "copy the file again")
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "y.npz", "w", kind) as file:
            file.writestr("arr_0.npy", (tmp_path / "x.npy").read_bytes())
        refused(tmp_path / "y.npz", "y.npz", "copy the file again")


def test_a_large_array_is_not_loaded_whole(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as file, file.open("arr_0.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "|u1", "fortran_order": False, "shape": (1024, 256, 256, 3)}
        )
        for _ in range(24):
            stream.write(bytes(8 * 2**20))
    images = open_images(tmp_path / "x.npz")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(map(len, images.batches(32))) == 1024
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 120 * 1024
