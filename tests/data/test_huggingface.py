"""Data sets of Hugging Face's library: which columns are taken, and what broken rows do."""

import io
import json
import re
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from hemstitch.data import HuggingFace, open_dataset
from hemstitch.errors import HemstitchError, MissingExtraError

datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install 'hemstitch[hf]'")

SIDE = 8
IMAGE = datasets.Image()
LABEL = datasets.ClassLabel(names=["cat", "hot dog", "bird"])


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()


def pixels(value):
    """An image of noise whose first pixel tells which it is."""
    image = np.random.default_rng(value).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    image[0, 0] = value % 256
    return image


def encoded(value, form="png"):
    whole = io.BytesIO()
    Image.fromarray(pixels(value)).save(whole, form)
    return whole.getvalue()


def rows(count, spoilt=()):
    """Images as that library stores them; those spoilt are cut in half."""
    whole = [encoded(i) for i in range(count)]
    return [{"bytes": x[: len(x) // 2] if i in spoilt else x, "path": None} for i, x in enumerate(whole)]


def save(path, columns, **features):
    """A saved data set of columns, the types of some of which are given."""
    table = datasets.Dataset.from_dict(columns)
    features = {name: features.get(name, feature) for name, feature in table.features.items()}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.save_to_disk(str(path))
    return path


def pets(path, count=6, spoilt=(), classes=3):
    labels = [i % classes for i in range(count)]
    return save(path, {"image": rows(count, spoilt), "label": labels}, image=IMAGE, label=LABEL)


def levels(data, index=None):
    """The first pixel of each image."""
    x0 = data.images(torch.arange(len(data)) if index is None else torch.tensor(index))
    return ((x0[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


class TestReading:
    def test_round_trip(self, tmp_path):
        data = HuggingFace(pets(tmp_path / "pets"), SIDE)
        assert (data.name, data.channels, data.size, data.flippable) == ("huggingface:pets", 3, SIDE, True)
        assert data.classes == ("cat", "hot dog", "bird")
        assert data.labels.dtype == torch.int64
        assert data.labels.tolist() == [0, 1, 2, 0, 1, 2]
        x0 = data.images(torch.arange(6))
        assert (x0.shape, x0.dtype, x0.is_contiguous()) == ((6, 3, SIDE, SIDE), torch.float32, True)
        expected = np.stack([pixels(i) for i in range(6)]).transpose(0, 3, 1, 2)
        assert np.array_equal(((x0 + 1) * 127.5).round().to(torch.uint8).numpy(), expected)
        assert levels(data, [5, 0, 0, 3, -1]) == [5, 0, 0, 3, 5]

    def test_images_given_as_pictures(self, tmp_path):
        """As `datasets` encodes them itself; two shards, in the order of before."""
        pictures = [Image.fromarray(pixels(i)) for i in range(5)]
        table = datasets.Dataset.from_dict({"picture": pictures})
        table.select([4, 2, 0, 1]).save_to_disk(str(tmp_path / "x"), num_shards=2)
        assert levels(HuggingFace(tmp_path / "x", SIDE)) == [4, 2, 0, 1]

    def test_the_split_to_train_on(self, tmp_path):
        whole = datasets.load_from_disk(str(pets(tmp_path / "pets")))
        both = datasets.DatasetDict({"test": whole.select([5]), "train": whole.select([1, 2])})
        both.save_to_disk(str(tmp_path / "both"))
        assert levels(HuggingFace(tmp_path / "both", SIDE)) == [1, 2]
        assert levels(HuggingFace(tmp_path / "both" / "test", SIDE)) == [5]
        datasets.DatasetDict({"test": whole, "rest": whole}).save_to_disk(str(tmp_path / "none"))
        with pytest.raises(HemstitchError, match=r"none has the splits test, rest and no train: give the path of one"):
            HuggingFace(tmp_path / "none", SIDE)

    def test_by_name(self, tmp_path):
        assert len(open_dataset("huggingface", str(pets(tmp_path / "pets")), SIDE)) == 6


class TestColumns:
    def test_without_labels(self, tmp_path):
        columns = {"image": rows(2), "text": ["a", "b"], "label": ["x", "y"], "labels": [0.5, 0.5]}
        data = HuggingFace(save(tmp_path / "x", columns, image=IMAGE), SIDE)
        assert data.classes == ()
        assert data.labels.tolist() == [0, 0]

    @pytest.mark.parametrize("name", ["label", "labels", "class"])
    def test_labels_that_are_numbers(self, tmp_path, name):
        columns = {"id": [7, 8], "image": rows(2), name: [3, 1]}
        data = HuggingFace(save(tmp_path / "x", columns, image=IMAGE), SIDE)
        assert data.classes == ("0", "1", "2", "3")
        assert data.labels.tolist() == [3, 1]

    def test_names_go_before_numbers(self, tmp_path):
        columns = {"image": rows(2), "label": [7, 8], "kind": [2, 0]}
        data = HuggingFace(save(tmp_path / "x", columns, image=IMAGE, kind=LABEL), SIDE)
        assert data.classes == ("cat", "hot dog", "bird")
        assert data.labels.tolist() == [2, 0]

    def test_several_kinds_of_names(self, tmp_path):
        columns = {"image": rows(2), "coarse": [0, 1], "label": [2, 0]}
        data = HuggingFace(save(tmp_path / "x", columns, image=IMAGE, coarse=LABEL, label=LABEL), SIDE)
        assert data.labels.tolist() == [2, 0]
        columns["fine"] = columns.pop("label")
        save(tmp_path / "y", columns, image=IMAGE, coarse=LABEL, fine=LABEL)
        with pytest.raises(
            HemstitchError, match=r"y has several columns of the type ClassLabel: coarse, fine; call the"
        ):
            HuggingFace(tmp_path / "y", SIDE)

    @pytest.mark.parametrize(
        ("columns", "features", "message"),
        [
            ({"text": ["a"]}, {}, r"x has 0 columns of the type Image .* columns are text \(Value\); cast"),
            (
                {"a": rows(1), "b": rows(1)},
                {"a": IMAGE, "b": IMAGE},
                r"2 columns of the type Image where one is expected: its columns are a \(Image\), b \(Image\)",
            ),
            (
                {"image": rows(2), "label": [0, -1]},
                {"image": IMAGE, "label": LABEL},
                r"column label of .*x goes from -1 to 0, where a label is 0..2: remove such rows",
            ),
            ({"image": rows(2), "label": [0, -5]}, {"image": IMAGE}, r"goes from -5 to 0, where a label is at least 0"),
            ({"image": rows(2), "label": [0, None]}, {"image": IMAGE, "label": LABEL}, r"1 rows of .*x have no label:"),
            ({"image": rows(1), "label": [9_000_000]}, {"image": IMAGE}, "go up to 9,000,000: number the classes"),
        ],
    )
    def test_refused(self, tmp_path, columns, features, message):
        save(tmp_path / "x", columns, **features)
        with pytest.raises(HemstitchError, match=message):
            HuggingFace(tmp_path / "x", SIDE)


class TestRefused:
    def test_no_path(self):
        with pytest.raises(HemstitchError, match=r"a saved data set needs its folder: data.path"):
            open_dataset("huggingface", "", SIDE)

    def test_size(self, tmp_path):
        with pytest.raises(HemstitchError, match="size is the side of the images to give"):
            HuggingFace(tmp_path, 0)

    def test_missing(self, tmp_path):
        with pytest.raises(
            HemstitchError, match="nowhere does not exist: give the folder that a data set was saved to"
        ):
            HuggingFace(tmp_path / "nowhere", SIDE)
        (tmp_path / "x.parquet").touch()
        with pytest.raises(HemstitchError, match=r"x.parquet is a file: give the folder"):
            HuggingFace(tmp_path / "x.parquet", SIDE)

    def test_no_rows(self, tmp_path, monkeypatch):
        """Saved, they cannot be loaded in all versions of the library."""
        monkeypatch.setattr(datasets, "load_from_disk", lambda path: datasets.Dataset.from_dict({"image": []}))
        with pytest.raises(HemstitchError, match="has no rows"):
            HuggingFace(tmp_path, SIDE)

    def test_some_other_folder(self, tmp_path):
        with pytest.raises(HemstitchError, match=r"cannot be read as a data set that was saved with save_to_disk \("):
            HuggingFace(tmp_path, SIDE)

    @pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "state.json", "dataset_info.json"])
    def test_damaged(self, tmp_path, name):
        file = pets(tmp_path / "pets") / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(HemstitchError, match=r"pets cannot be read as a data set that was saved with save_to_disk"):
            HuggingFace(tmp_path / "pets", SIDE)

    def test_a_file_that_is_only_named(self, tmp_path):
        """It would be read from wherever the data set says."""
        (tmp_path / "a.png").write_bytes(encoded(0))
        held, named = {"bytes": encoded(1), "path": ""}, {"bytes": None, "path": str(tmp_path / "a.png")}
        # of no type when saved, for then the library would fetch what is named
        path = save(tmp_path / "x", {"image": [held, named]})
        info = json.loads((path / "dataset_info.json").read_text())
        info["features"] = {"image": {"_type": "Image"}}
        (path / "dataset_info.json").write_text(json.dumps(info))
        data = HuggingFace(path, SIDE)
        assert levels(data, [0]) == [1]
        with pytest.raises(HemstitchError, match=r"row 1 names a file \(.*a.png\) and does not hold it: save the data"):
            levels(data, [1])

    def test_without_the_library(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(MissingExtraError, match=r"datasets is needed .*hemstitch\[hf\]"):
            HuggingFace(tmp_path, SIDE)


class TestBroken:
    def test_the_next_of_the_class(self, tmp_path):
        data = HuggingFace(pets(tmp_path / "pets", 9, spoilt=(1, 8)), SIDE)
        with pytest.warns(
            UserWarning, match=r"2 of the images in .*pets cannot be decoded, .*pets/row 1, .*pets/row 8$"
        ):
            assert levels(data) == [0, 4, 2, 3, 4, 5, 6, 7, 2]
        assert data.broken == [tmp_path / "pets" / "row 1", tmp_path / "pets" / "row 8"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert levels(data, [8, 1]) == [2, 4]

    @pytest.mark.parametrize("image", [None, {"bytes": b"", "path": None}])
    def test_no_image_in_a_row(self, tmp_path, image):
        data = HuggingFace(save(tmp_path / "x", {"image": [*rows(3), image]}, image=IMAGE), SIDE)
        with pytest.warns(UserWarning, match="row 3$"):
            assert levels(data) == [0, 1, 2, 0]

    @pytest.mark.parametrize("form", ["bmp", "eps", "tiff", "gif"])
    def test_other_formats_stay_shut(self, tmp_path, form):
        columns = {"image": [{"bytes": encoded(5, form), "path": "a.png"}, *rows(1)]}
        data = HuggingFace(save(tmp_path / "x", columns, image=IMAGE), SIDE)
        with pytest.warns(UserWarning, match="row 0$"):
            assert levels(data) == [0, 0]

    def test_more_than_one_percent(self, tmp_path):
        data = HuggingFace(pets(tmp_path / "pets", 400, spoilt=range(0, 50, 10)), SIDE)
        with pytest.warns(UserWarning, match="4 of the images"):
            levels(data, list(range(40)))
        with pytest.raises(
            HemstitchError, match=r"more than 1% of the images .*, 5 of 400 so far: .*row 0, .*row 40; ch"
        ):
            levels(data, [40])

    def test_from_several_threads(self, tmp_path):
        path = pets(tmp_path / "pets", 300, spoilt=(4, 7, 299))
        expected = [i % 256 for i in range(300)]
        expected[4], expected[7], expected[299] = 10, 10, 2
        orders = [torch.randperm(300, generator=torch.Generator().manual_seed(i)).tolist() for i in range(4)]
        data = HuggingFace(path, SIDE)
        with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(4) as threads:
            warnings.simplefilter("always")
            results = list(threads.map(lambda order: levels(data, order), orders))
        assert results == [[expected[i] for i in order] for order in orders]
        named = re.findall(r"row (\d+)", " ".join(str(warning.message) for warning in caught))
        assert sorted(named) == ["299", "4", "7"]
