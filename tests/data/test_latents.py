"""Reading latents: round trip, what a batch touches, and damage that is named."""

import json
import os
import shutil
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from hemstitch import HemstitchError
from hemstitch.data import Latents, open_dataset
from hemstitch.data.dataset import Dataset
from hemstitch.encode import encode

N = 400


class Pictures(Dataset):
    """Sample i is i everywhere, its last column -i; sorted by class."""

    name = "pictures"
    classes = ("a", "b")
    channels, size = 1, 4

    def __init__(self, count=N, flippable=True):
        self.labels = torch.arange(count) * 2 // count
        self.flippable = flippable

    def images(self, index_B):
        x0 = index_B.float().reshape(-1, 1, 1, 1).repeat(1, 1, 4, 4)
        x0[..., -1] *= -1
        return x0


def written(out, data=None, **settings):
    for _ in encode(data or Pictures(), out, **{"per_shard": 4, "device": "cpu", **settings}):
        pass
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """100 shards of 4 samples; shard k holds k, k + 100, k + 200 and k + 300."""
    return written(tmp_path_factory.mktemp("latents") / "folder")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def values(data, *index):
    return data.images(torch.tensor(index))[:, 0, 0, 0].tolist()


def shard(folder, k):
    return folder / f"latents-{k:05d}.safetensors"


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def change(path):
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


DAMAGES = {
    "truncated": (truncate, r"has \d+ bytes of \d+"),
    "missing": (lambda path: path.unlink(), "is missing"),
    "changed": (change, "was changed since it was written"),
    "empty": (lambda path: path.write_bytes(b""), "has 0 bytes of"),
    "garbled": (lambda path: path.write_bytes(b"\xff" * path.stat().st_size), "does not hold the tensors that index"),
}


class TestReading:
    def test_pixels_come_back_under_the_name_of_their_data(self, folder):
        data = open_dataset("latents", str(folder))
        assert isinstance(data, Latents)
        assert data.name == data.spec(null_label=True).space == "pictures"
        assert (data.classes, data.channels, data.size, data.flippable) == (("a", "b"), 1, 4, True)
        assert (data.mean, data.std, data.autoencoder) == ((), (), "identity")
        assert torch.equal(data.labels, Pictures().labels)
        index = torch.randperm(N)
        assert torch.equal(data.images(index), Pictures().images(index))
        assert data.images(index).dtype == torch.float32
        assert data.images(torch.tensor([], dtype=torch.int64)).shape == (0, 1, 4, 4)

    def test_mirrored_rows_are_the_stored_ones(self, folder):
        data, index = Latents(folder), torch.randperm(N)
        flip = torch.rand(N) < 0.5
        assert torch.equal(data.mirrored(index, flip), Pictures().mirrored(index, flip))

    def test_normalised_on_reading(self, tmp_path, assert_close):
        data = Latents(written(tmp_path, normalise="measured"))
        values = data.mirrored(torch.arange(N).repeat(2), torch.arange(2 * N) < N).double()
        assert abs(values.mean()) < 1e-6
        assert abs(values.std(correction=0) - 1) < 1e-6
        mean, std = (torch.tensor(v).reshape(1, 1, 1, 1) for v in (data.mean, data.std))
        assert_close(data.images(torch.arange(N)) * std + mean, Pictures().images(torch.arange(N)))

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_narrow_storage(self, tmp_path, dtype):
        data = Latents(written(tmp_path, dtype=dtype))
        exact = Pictures().images(torch.arange(N))
        assert torch.equal(data.images(torch.arange(N)), exact.to(getattr(torch, dtype)).float())

    def test_the_name_tells_autoencoders_and_normalisations_apart(self, folder):
        encoding = Latents(folder).encoding
        changed = [
            encoding.space((0.0,), (1.0,)),
            (measured := replace(encoding, normalise="measured")).space((0.0,), (1.0,)),
            measured.space((0.5,), (1.0,)),
            measured.space((0.0,), (2.0,)),
            (other := replace(encoding, autoencoder_fingerprint="0123456789ab")).space((0.0,), (1.0,)),
            replace(other, autoencoder_fingerprint="ba9876543210").space((0.0,), (1.0,)),
        ]
        assert len(set(changed)) == len(changed)
        assert changed[4].startswith("latents:0123456789ab:")

    def test_data_that_are_not_to_be_flipped(self, tmp_path):
        data = Latents(written(tmp_path, Pictures(40, flippable=False)))
        assert not data.flippable
        assert data.mirrored(torch.arange(3), torch.zeros(3, dtype=torch.bool)).shape == (3, 1, 4, 4)
        with pytest.raises(HemstitchError, match="holds no mirrored latents"):
            data.mirrored(torch.arange(3), torch.tensor([False, True, False]))

    @pytest.mark.parametrize("index", [-1, N])
    def test_an_index_beyond(self, folder, index):
        with pytest.raises(IndexError, match=r"indices lie in 0..399"):
            Latents(folder).images(torch.tensor([0, index]))

    def test_from_many_threads_and_after_a_fork(self, folder):
        data = Latents(folder)

        def read(seed):
            index = torch.randint(0, N, (64,), generator=torch.Generator().manual_seed(seed))
            return torch.equal(data.images(index), Pictures().images(index))

        child = os.fork()
        if not child:
            os._exit(0 if values(data, 5, 399) == [5, 399] else 1)
        assert os.waitpid(child, 0)[1] == 0
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(100)))

    @pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel which pages are in memory")
    def test_a_batch_reads_its_samples_and_not_the_shard(self, tmp_path, monkeypatch):
        monkeypatch.setattr("hemstitch.data.latents._HASHED", 0)
        file = shard(written(tmp_path, Pictures(20_000), per_shard=20_000), 0)
        whole = file.stat().st_size
        evict(file)
        data = Latents(tmp_path)
        data.images(torch.tensor([100, 7_000, 19_000]))
        assert resident(data) < whole / 4

    def test_the_size_may_be_left_out(self, folder):
        assert Latents(folder, 4).size == 4
        with pytest.raises(HemstitchError, match="holds latents of size 4, not 32: leave the size out"):
            Latents(folder, 32)


def evict(file):
    """Out of the page cache, as far as the file system does that."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident(data):
    """Bytes of the shards that this process has mapped in."""
    total, inside = 0, False
    with open("/proc/self/smaps") as maps:
        for line in maps:
            if "-" in line.split()[0]:
                inside = str(data.path) in line
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
    return total


class TestRefused:
    def test_no_latents(self, tmp_path, folder):
        with pytest.raises(HemstitchError, match="latents need the folder that hemstitch encode wrote"):
            open_dataset("latents")
        with pytest.raises(HemstitchError, match="nowhere is no folder: give one that hemstitch encode wrote"):
            Latents(tmp_path / "nowhere")
        with pytest.raises(HemstitchError, match=r"has no index.json: it holds no latents"):
            Latents(tmp_path)

    def test_unfinished(self, copy):
        (copy / "index.json").unlink()
        with pytest.raises(HemstitchError, match=r"was not finished: run the same hemstitch encode again, and it goes"):
            Latents(copy)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda i: i.clear(), r"mean is a list of float, not None"),
            (lambda i: i.update(more=1), r"it has no more"),
            (lambda i: i["encoding"].update(format=2), r"reads latents of format 1, not 2"),
            (lambda i: i["encoding"].update(dtype="int4"), r"it.encoding.dtype is one of float32"),
            (lambda i: i["encoding"].update(count="many"), r"it.encoding.count is a int, not 'many'"),
            (lambda i: i["encoding"].update(count=9), r"its shards do not add up to its count"),
            (lambda i: i["shards"].pop(), r"its shards do not add up to its count"),
            (lambda i: i["shards"][0].pop("sha256"), r"shards is incomplete"),
            (lambda i: i.update(std=[0.0]), r"std is above 0"),
            (lambda i: i.update(mean=[float("nan")]), r"mean is a finite number per channel"),
            (lambda i: i.update(std=[1.0, 1.0]), r"std is a finite number per channel"),
            (lambda i: i.update(std=["1"]), r"std is a list of float"),
            (lambda i: i.update(space="digits"), r"the space of its mean and std is pictures, not digits"),
        ],
    )
    def test_an_index_that_is_not_one(self, copy, spoil, message):
        index = json.loads((copy / "index.json").read_text())
        spoil(index)
        (copy / "index.json").write_text(json.dumps(index))
        with pytest.raises(HemstitchError, match=rf"index.json is no index of latents that can be used: .*{message}"):
            Latents(copy)

    def test_an_index_cut_short(self, copy):
        truncate(copy / "index.json")
        with pytest.raises(HemstitchError, match=r"index.json is JSON, and this is not"):
            Latents(copy)

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_labels(self, copy, damage):
        DAMAGES[damage][0](copy / "labels.safetensors")
        with pytest.raises(HemstitchError, match=r"labels.safetensors (is damaged|cannot be read).*; encode the data"):
            Latents(copy)


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_up_to_one_percent_is_replaced_within_its_class(self, copy, damage):
        spoil, said = DAMAGES[damage]
        spoil(shard(copy, 99))
        with pytest.warns(UserWarning, match=rf"^4 of the 400 samples in .*00099.safetensors {said}") as caught:
            data = Latents(copy)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert data.damaged == [shard(copy, 99)]
        # 199 is the last of class a, round to its first; 399 the last of class b
        assert values(data, 98, 99, 199, 299, 399, 0) == [98, 100, 0, 300, 200, 0]
        assert len(data) == N

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_more_is_an_error(self, copy, damage):
        spoil, said = DAMAGES[damage]
        for k in (3, 5):
            spoil(shard(copy, k))
        message = rf"8 of the 400 samples .*00003.safetensors {said}.*, .*00005.safetensors {said}.*; encode the data"
        with pytest.raises(HemstitchError, match=message):
            Latents(copy)

    def test_encoding_again_mends_it(self, copy, folder):
        truncate(shard(copy, 3))
        shard(copy, 5).unlink()
        written(copy)
        assert values(Latents(copy), 3, 5) == [3, 5]
        assert shard(copy, 3).read_bytes() == shard(folder, 3).read_bytes()

    def test_large_folders_are_verified_when_asked(self, copy, monkeypatch):
        monkeypatch.setattr("hemstitch.data.latents._HASHED", 0)
        change(shard(copy, 99))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data = Latents(copy)
            assert values(data, 99) == [99]
        with pytest.warns(UserWarning, match=r"4 of the 400 .*00099.safetensors was changed"):
            data.verify()
        assert values(data, 99) == [100]
        data.verify()
        change(shard(copy, 98))
        with pytest.raises(HemstitchError, match="8 of the 400 samples"):
            data.verify()

    def test_a_class_lost_whole(self, tmp_path):
        class Rare(Pictures):
            def __init__(self):
                super().__init__()
                self.labels = (torch.arange(N) == 99).long()

        change(shard(written(tmp_path, Rare()), 99))
        with pytest.raises(HemstitchError, match=r"every sample of class 1 in .* is damaged"):
            Latents(tmp_path)

    def test_verify_of_a_sound_folder(self, folder):
        Latents(folder).verify()
        labels = torch.stack([load_file(shard(folder, k))["labels"] for k in range(100)], 1).flatten()
        assert torch.equal(labels, Latents(folder).labels)
