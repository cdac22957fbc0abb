"""Encoding: parity with the autoencoder called directly, invariance to restart, processes and shards, and faults."""

import json
import math
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hemstitch import CheckpointError, HemstitchError, seeds
from hemstitch.autoencoder import ENCODE, ENCODE_FLIPPED, open_autoencoder
from hemstitch.data import Digits, Latents
from hemstitch.data.dataset import Dataset
from hemstitch.encode import encode, exact_sum
from hemstitch.errors import MissingExtraError


class Pictures(Dataset):
    """8-bit images, sorted by class."""

    def __init__(self, count=37, channels=3, size=8, flippable=True, name="pictures", seed=0):
        self.name, self.classes = name, ("a", "b", "c")
        self.channels, self.size, self.flippable = channels, size, flippable
        generator = torch.Generator().manual_seed(seed)
        self.pixels = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
        self.labels = torch.arange(count) * 3 // count

    def images(self, index_B):
        return self.pixels[index_B].float().div_(127.5).sub_(1)


def all_of(data):
    return data.images(torch.arange(len(data)))


def to_end(data, out, **settings):
    """Encode in shards of 10; the progress of every batch."""
    return list(encode(data, out, **{"per_shard": 10, "batch": 4, "device": "cpu", **settings}))


def contents(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def in_order(out, name):
    """A tensor of all shards, by sample."""
    shards = [load_file(path)[name] for path in sorted(out.glob("latents-*.safetensors"))]
    count = sum(map(len, shards))
    return torch.stack([shards[i % len(shards)][i // len(shards)] for i in range(count)])


def index_of(out):
    return json.loads((out / "index.json").read_text())


@pytest.fixture(scope="module")
def kl(tmp_path_factory):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    net = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        shift_factor=0.25,
    )
    folder = tmp_path_factory.mktemp("kl") / "vae"
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    blocks = {f"{side}_block_out_channels": (8, 8) for side in ("encoder", "decoder")}
    net = AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=0.5)
    folder = tmp_path_factory.mktemp("tiny") / "vae"
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "latents"
    to_end(Pictures(), out)
    return out


def changed_config(folder, to, **changes):
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


class TestAutoencoder:
    def test_kl(self, kl, assert_close):
        from diffusers import AutoencoderKL

        ours, theirs = open_autoencoder(kl), AutoencoderKL.from_pretrained(kl)
        assert (ours.channels, ours.factor, ours.scaling_factor, ours.shift_factor) == (4, 2, 0.18215, 0.25)
        assert ours.shape(3, 8) == ours.shape(1, 8) == (4, 4)
        assert len(ours.fingerprint) == 12
        images = all_of(Pictures(5))
        key_B2 = seeds.keys([(7, i) for i in range(5)])
        with torch.no_grad():
            posterior = theirs.encode(images).latent_dist
            decoded = theirs.decode(posterior.mean).sample.clamp(-1, 1)
        for flipped, stream in ((False, ENCODE), (True, ENCODE_FLIPPED)):
            noise = seeds.normal(key_B2, stream, (4, 4, 4))
            assert torch.equal(ours.encode(images, key_B2, flipped), posterior.mean + posterior.std * noise)
        assert torch.equal(ours.encode(images), posterior.mean)
        assert torch.equal(ours.decode(posterior.mean), decoded)
        alone = [ours.encode(images[i : i + 1], key_B2[i : i + 1]) for i in range(5)]
        assert_close(torch.cat(alone), ours.encode(images, key_B2))

    def test_tiny(self, tiny):
        from diffusers import AutoencoderTiny

        ours, theirs = open_autoencoder(tiny), AutoencoderTiny.from_pretrained(tiny)
        images = all_of(Pictures(5))
        with torch.no_grad():
            latents = theirs.encode(images).latents
        assert torch.equal(ours.encode(images, seeds.keys(range(5))), latents)
        assert latents.shape[1:3] == ours.shape(3, 8)
        images = ours.decode(100 * latents)
        assert images.shape == (5, 3, 8, 8)
        assert images.abs().max() <= 1

    def test_grey_images_are_coloured(self, kl):
        ours = open_autoencoder(kl)
        grey = all_of(Pictures(3, channels=1))
        assert torch.equal(ours.encode(grey), ours.encode(grey.repeat(1, 3, 1, 1)))
        assert ours.decode(ours.encode(grey)).shape == (3, 3, 8, 8)

    def test_identity(self):
        ours = open_autoencoder("identity")
        images = all_of(Pictures(3))
        assert torch.equal(ours.encode(images), images)
        assert torch.equal(ours.decode(2 * images), (2 * images).clamp(-1, 1))
        assert ours.shape(5, 7) == (5, 7)

    def test_in_a_pipeline_and_as_a_variant(self, kl, tmp_path):
        shutil.copytree(kl, tmp_path / "pipeline" / "vae")
        file = tmp_path / "pipeline" / "vae" / "diffusion_pytorch_model.safetensors"
        file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
        ours = open_autoencoder(tmp_path / "pipeline")
        assert ours.fingerprint == open_autoencoder(kl).fingerprint
        assert torch.equal(ours.encode(all_of(Pictures(2))), open_autoencoder(kl).encode(all_of(Pictures(2))))

    def test_statistics_per_channel(self, kl, tmp_path):
        """Some published autoencoders have them: (z - mean) * scaling_factor / std, as diffusers' pipelines do."""
        changes = {"latents_mean": [1.0, 2, 3, 4], "latents_std": [1.0, 2, 3, 4], "scaling_factor": 0.5}
        ours = open_autoencoder(changed_config(kl, tmp_path / "vae", **changes))
        assert ours.mean == (1, 2, 3, 4)
        assert ours.std == (2, 4, 6, 8)
        with pytest.raises(CheckpointError, match="scales latents by no finite, positive factor"):
            open_autoencoder(changed_config(kl, tmp_path / "negative", scaling_factor=-1.0))

    def test_other_folders(self, kl, tmp_path):
        with pytest.raises(CheckpointError, match="is no folder: give 'identity', or the local folder"):
            open_autoencoder(tmp_path / "nowhere")
        with pytest.raises(CheckpointError, match=r"has no config.json, nor vae/config.json"):
            open_autoencoder(tmp_path)
        with pytest.raises(CheckpointError, match="is of a UNet: an autoencoder here is one of AutoencoderKL or"):
            open_autoencoder(changed_config(kl, tmp_path / "unet", _class_name="UNet"))

    def test_weights(self, kl, tmp_path):
        file = shutil.copytree(kl, tmp_path / "vae") / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        save_file({name: value for name, value in weights.items() if "quant_conv" not in name}, file)
        with pytest.raises(CheckpointError, match=r"does not hold the weights of its config: missing .*quant_conv"):
            open_autoencoder(tmp_path / "vae")
        save_file(weights | {"more": torch.ones(1)}, file)
        with pytest.raises(CheckpointError, match=r"unexpected more"):
            open_autoencoder(tmp_path / "vae")
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match="holds no AutoencoderKL that loads"):
            open_autoencoder(tmp_path / "vae")
        for name in ("diffusion_pytorch_model.a.safetensors", "diffusion_pytorch_model.b.safetensors"):
            shutil.copy(kl / file.name, tmp_path / "vae" / name)
        file.unlink()
        with pytest.raises(CheckpointError, match=r"a.safetensors or .*b.safetensors: keep one of them"):
            open_autoencoder(tmp_path / "vae")

    def test_pickled_weights_are_refused_unread(self, kl, tmp_path):
        file = shutil.copytree(kl, tmp_path / "vae") / "diffusion_pytorch_model.safetensors"
        file.unlink()
        with pytest.raises(CheckpointError, match=r"has no diffusion_pytorch_model.safetensors: copy the whole"):
            open_autoencoder(tmp_path / "vae")

        class Payload:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "ran"),))

        (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
        with pytest.raises(
            CheckpointError, match=r"model.bin is pickled, .* fetch diffusion_pytorch_model.safetensors"
        ):
            open_autoencoder(tmp_path / "vae")
        assert not (tmp_path / "ran").exists()

    def test_images_and_latents_that_do_not_fit(self, kl):
        ours = open_autoencoder(kl)
        with pytest.raises(HemstitchError, match="9 is no multiple of that: give images of size 10"):
            ours.encode(torch.zeros(1, 3, 9, 9))
        with pytest.raises(HemstitchError, match=r"images of 3 channels \(or 1, repeated\), not 2"):
            ours.encode(torch.zeros(1, 2, 8, 8))
        with pytest.raises(HemstitchError, match=r"are \(B, 4, S, S\), not \(1, 3, 8, 8\)"):
            ours.decode(torch.zeros(1, 3, 8, 8))

    def test_without_diffusers(self, kl, monkeypatch):
        monkeypatch.setitem(sys.modules, "diffusers", None)
        with pytest.raises(MissingExtraError, match=r"diffusers is needed .*hemstitch\[diffusers\]"):
            open_autoencoder(kl)
        assert open_autoencoder("identity")


class TestWhatIsStored:
    def test_latents_of_images_and_of_mirrored_images(self, kl, tmp_path, assert_close):
        data = Pictures()
        to_end(data, tmp_path, autoencoder=str(kl), seed=3)
        net, images = open_autoencoder(kl), all_of(data)
        key_B2 = seeds.keys([(3, i) for i in range(len(data))])
        assert_close(in_order(tmp_path, "x"), net.encode(images, key_B2))
        assert_close(in_order(tmp_path, "flipped"), net.encode(images.flip(-1), key_B2, flipped=True))
        assert (in_order(tmp_path, "flipped") - in_order(tmp_path, "x").flip(-1)).abs().max() > 0.1
        assert torch.equal(in_order(tmp_path, "labels"), data.labels)
        index = index_of(tmp_path)
        assert index["encoding"]["autoencoder"] == str(kl)
        assert index["encoding"]["autoencoder_fingerprint"] == net.fingerprint
        assert index["classes"] == ["a", "b", "c"]
        assert [shard["rows"] for shard in index["shards"]] == [10, 9, 9, 9]

    def test_batches_differ_by_rounding(self, kl, tmp_path, assert_close):
        for batch in (4, 7):
            to_end(Pictures(11), tmp_path / str(batch), autoencoder=str(kl), batch=batch)
        for name in ("x", "flipped"):
            assert_close(in_order(tmp_path / "4", name), in_order(tmp_path / "7", name))

    def test_no_mirror_images_where_data_are_not_to_be_flipped(self, tmp_path):
        to_end(Digits("test"), tmp_path, per_shard=100)
        assert set(load_file(tmp_path / "latents-00000.safetensors")) == {"x", "labels"}
        assert torch.equal(in_order(tmp_path, "x"), all_of(Digits("test")))

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_statistics_are_those_of_all_that_is_stored(self, tiny, tmp_path, dtype):
        to_end(Pictures(), tmp_path, autoencoder=str(tiny), dtype=dtype)
        values = torch.cat([in_order(tmp_path, name) for name in ("x", "flipped")])
        assert values.dtype == getattr(torch, dtype)
        values = values.double().numpy()
        index = index_of(tmp_path)
        assert np.allclose(index["measured_mean"], values.mean((0, 2, 3)), rtol=1e-12)
        assert np.allclose(index["measured_std"], values.std((0, 2, 3)), rtol=1e-12)
        assert index["mean"] == index["measured_mean"]

    def test_statistics_do_not_depend_on_shards(self, tiny, tmp_path):
        for per_shard in (1, 6, 100):
            to_end(Pictures(), tmp_path / str(per_shard), autoencoder=str(tiny), per_shard=per_shard, batch=1)
        told = [index_of(tmp_path / str(n)) for n in (1, 6, 100)]
        assert [len(index["shards"]) for index in told] == [37, 7, 1]
        for name in ("mean", "std", "space"):
            assert told[0][name] == told[1][name] == told[2][name]

    def test_statistics_far_from_zero(self, tmp_path):
        """A mean 10^4 times the deviation."""
        data = Pictures(flippable=False)
        data.images = lambda index_B: Pictures.images(data, index_B) * 1e-2 + 100
        to_end(data, tmp_path, normalise="measured")
        values = all_of(data).double().numpy()
        assert np.allclose(index_of(tmp_path)["std"], values.std((0, 2, 3)), rtol=1e-8)

    def test_a_constant_channel_is_only_shifted(self, tmp_path):
        data = Pictures()
        data.pixels[:, 1] = 200
        to_end(data, tmp_path, normalise="measured")
        assert index_of(tmp_path)["measured_std"][1] == 0
        assert Latents(tmp_path).std[1] == 1
        assert not Latents(tmp_path).images(torch.arange(5))[:, 1].any()

    def test_normalisations(self, kl, tmp_path, assert_close):
        data = Pictures()
        for mode in ("measured", "vae", "none"):
            to_end(data, tmp_path / mode, autoencoder=str(kl), normalise=mode)
        raw = in_order(tmp_path / "none", "x")
        read = {mode: all_of(Latents(tmp_path / mode)) for mode in ("measured", "vae", "none")}
        assert torch.equal(read["none"], raw)
        assert_close(read["vae"], (raw - 0.25) * 0.18215)
        flipped = Latents(tmp_path / "measured").mirrored(torch.arange(37), torch.ones(37, dtype=torch.bool))
        both = torch.cat([read["measured"], flipped])
        assert both.mean((0, 2, 3)).abs().max() < 1e-6
        assert (both.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6
        assert Latents(tmp_path / "none").mean == ()

    def test_measured_is_the_default_of_latents_only(self, tiny, straight, tmp_path):
        to_end(Pictures(), tmp_path, autoencoder=str(tiny))
        assert index_of(tmp_path)["encoding"]["normalise"] == "measured"
        assert index_of(straight)["encoding"]["normalise"] == "none"

    def test_pixels_as_uint8_are_exact(self, straight, tmp_path):
        to_end(Pictures(), tmp_path, dtype="uint8")
        assert in_order(tmp_path, "x").dtype == torch.uint8
        assert torch.equal(all_of(Latents(tmp_path)), all_of(Pictures()))
        for name in ("measured_mean", "measured_std"):
            assert index_of(tmp_path)[name] == index_of(straight)[name]

    def test_progress(self, tmp_path):
        told = to_end(Pictures(), tmp_path)
        assert [p.done for p in told] == [4, 8, 10, 14, 18, 19, 23, 27, 28, 32, 36, 37]
        assert [p.saved.name for p in told if p.saved] == [f"latents-0000{k}.safetensors" for k in range(4)]
        assert told[-1].total == 37
        assert told[-1].left == 0
        again = to_end(Pictures(), tmp_path)
        assert [(p.done, p.kept, p.saved) for p in again] == [(37, 37, None)]

    def test_exact_sum(self):
        values = (np.random.default_rng(0).standard_normal(999) * 10.0 ** np.arange(-150, 849).clip(-150, 150)).tolist()
        parts = exact_sum(values)
        assert sum(map(Fraction, parts)) == sum(map(Fraction, values))
        assert exact_sum(values[::-1]) == parts
        assert exact_sum([*exact_sum(values[:500]), *exact_sum(values[500:])]) == parts
        assert exact_sum([]) == exact_sum([1.0, -1.0]) == ()
        assert math.fsum(parts) == parts[0]


ENCODE_SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_encode import Pictures
from hemstitch.encode import encode
for progress in encode(Pictures(), Path(sys.argv[2]), per_shard=10, batch=4, device="cpu", patience=60):
    if progress.done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def start(out, kill_at=-1, **environment):
    command = [sys.executable, "-c", ENCODE_SCRIPT, str(Path(__file__).parent), str(out), str(kill_at)]
    return subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)


class TestGoingOn:
    def test_after_kill_in_the_same_bytes(self, straight, tmp_path):
        process = start(tmp_path, kill_at=23)
        _, said = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, said
        assert not (tmp_path / "index.json").exists()
        told = to_end(Pictures(), tmp_path)
        assert told[0].kept == 19
        assert contents(tmp_path) == contents(straight)

    def test_two_processes_write_the_same_bytes(self, straight, tmp_path):
        both = [start(tmp_path, RANK=str(rank), WORLD_SIZE="2") for rank in (1, 0)]
        for process in both:
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0, said
        assert contents(tmp_path) == contents(straight)

    def test_two_processes_share_an_autoencoder(self, kl, tmp_path, monkeypatch):
        settings = {"autoencoder": str(kl), "per_shard": 10, "batch": 4, "device": "cpu"}
        list(encode(Pictures(), tmp_path / "one", **settings))
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        first = encode(Pictures(), tmp_path / "two", **settings)
        assert next(first).total == 19
        monkeypatch.setenv("RANK", "1")
        second = encode(Pictures(), tmp_path / "two", **settings)
        assert next(second).total == 18
        list(second)
        list(first)
        assert contents(tmp_path / "one") == contents(tmp_path / "two")

    @pytest.mark.parametrize("leftover", ["aside", "unmarked", "truncated", "changed", "note", "labels"])
    def test_what_is_incomplete_is_done_again_and_nothing_else(self, straight, tmp_path, leftover):
        out = shutil.copytree(straight, tmp_path / "latents")
        shard = out / "latents-00001.safetensors"
        data = shard.read_bytes()
        if leftover == "aside":
            (out / ".latents-00001.safetensors.123.tmp").write_bytes(data[:100])
            (out / ".index.json.123.tmp").write_text("{")
            (out / "index.json").unlink()
        elif leftover == "unmarked":
            shard.with_suffix(".json").unlink()
        elif leftover == "truncated":
            shard.write_bytes(data[:-1])
        elif leftover == "changed":
            shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        elif leftover == "note":
            shard.with_suffix(".json").write_text('{"encoding": []}')
        else:
            (out / "labels.safetensors").write_bytes(b"")
        before = {path.name: path.stat().st_mtime_ns for path in out.glob("latents-*.safetensors")}
        told = to_end(Pictures(), out)
        assert contents(out) == contents(straight)
        redone = {name for name, time in before.items() if (out / name).stat().st_mtime_ns != time}
        assert redone == (set() if leftover in ("aside", "labels") else {shard.name})
        assert told[-1].kept == (37 if not redone else 28)

    def test_interrupted(self, straight, tmp_path):
        progress = encode(Pictures(), tmp_path, per_shard=10, batch=4, device="cpu")
        while not next(progress).saved:
            pass
        next(progress)
        with pytest.raises(KeyboardInterrupt):
            progress.throw(KeyboardInterrupt)
        assert sorted(contents(tmp_path)) == ["encoding.json", "latents-00000.json", "latents-00000.safetensors"]
        to_end(Pictures(), tmp_path)
        assert contents(tmp_path) == contents(straight)

    def test_no_space_leaves_complete_shards(self, straight, tmp_path):
        """A limit on file size, smaller than a shard, in place of a full disk."""
        progress = encode(Pictures(), tmp_path, per_shard=10, batch=4, device="cpu")
        while not next(progress).saved:
            pass
        before = contents(tmp_path)
        del before[".rank-0"]  # the sign that a process is at work
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
            with pytest.raises(
                HemstitchError, match=r"00001.safetensors could not be written .*; complete shards stay"
            ):
                list(progress)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert contents(tmp_path) == before
        to_end(Pictures(), tmp_path)
        assert contents(tmp_path) == contents(straight)

    def test_a_process_that_is_missing(self, tmp_path, monkeypatch):
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(HemstitchError, match=r"for 0.\d* s, .*: latents-00001.safetensors, latents-00003.safetens"):
            to_end(Pictures(), tmp_path, patience=0.3)
        monkeypatch.setenv("RANK", "1")
        with pytest.raises(HemstitchError, match=r"encoding.json has not appeared for 0.3 s: is process 0 running"):
            to_end(Pictures(), tmp_path / "other", patience=0.3)

    def test_rank_0_waits_for_the_others(self, straight, tmp_path, monkeypatch):
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        other = None
        waited = []
        for progress in encode(Pictures(), tmp_path, per_shard=10, batch=4, device="cpu"):
            if progress.waiting and not other:
                other = start(tmp_path, RANK="1", WORLD_SIZE="2")
            waited.append(progress.waiting)
        assert other.wait(60) == 0
        assert max(waited) == 2
        assert contents(tmp_path) == contents(straight)


class TestRefused:
    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"dtype": "bfloat16"}, r"dtype \('float32' there, 'bfloat16' now\)"),
            (
                {"normalise": "measured", "seed": 1},
                r"normalise \('none' there, 'measured' now\), seed \(0 there, 1 now\)",
            ),
            ({"per_shard": 11}, r"per_shard \(10 there, 11 now\)"),
            ({"data": Pictures(38)}, r"data_fingerprint .*, count \(37 there, 38 now\)"),
            ({"data": Pictures(seed=1)}, r"data_fingerprint"),
            ({"data": Pictures(name="others")}, r"data \('pictures' there, 'others' now\)"),
        ],
        ids=str,
    )
    def test_other_settings_in_the_same_folder(self, straight, settings, named):
        before = contents(straight)
        with pytest.raises(HemstitchError, match=f"holds latents encoded otherwise; these differ: .*{named}.*Choose"):
            to_end(**{"data": Pictures(), "out": straight, **settings})
        assert contents(straight) == before

    def test_another_autoencoder_but_not_another_place(self, kl, tmp_path):
        to_end(Pictures(5), tmp_path / "out", autoencoder=str(kl))
        moved = shutil.copytree(kl, tmp_path / "moved")
        assert to_end(Pictures(5), tmp_path / "out", autoencoder=str(moved))[0].kept == 5
        file = moved / "diffusion_pytorch_model.safetensors"
        save_file({name: 2 * value for name, value in load_file(file).items()}, file)
        with pytest.raises(HemstitchError, match=r"these differ: autoencoder_fingerprint \('\w{12}' there"):
            to_end(Pictures(5), tmp_path / "out", autoencoder=str(moved))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"batch": 0}, "batch is the number of images encoded at a time, at least 1, not 0"),
            ({"per_shard": 0}, "per_shard is at least 1, not 0"),
            ({"seed": -1}, "seed is at least 0"),
            ({"dtype": "int4"}, "dtype is one of float32, .*, not 'int4'"),
            ({"normalise": "vea"}, "normalise is 'measured', 'vae' or 'none', not 'vea'"),
            ({"normalise": "vae"}, "identity has no published normalisation"),
            ({"device": "gpu"}, "device is like 'cpu', 'cuda' or 'cuda:1', not 'gpu'"),
            ({"autoencoder": "/nowhere"}, "is no folder: give 'identity'"),
            ({"data": Pictures(0)}, "holds no images to encode"),
            ({"data": Digits(), "dtype": "uint8"}, "the images of digits are not 8-bit: store them as 'float32'"),
        ],
        ids=str,
    )
    def test_settings(self, tmp_path, settings, message):
        with pytest.raises(HemstitchError, match=message):
            to_end(**{"data": Pictures(), "out": tmp_path / "out", **settings})

    def test_uint8_is_for_pixels(self, tiny, tmp_path):
        with pytest.raises(HemstitchError, match="dtype 'uint8' stores pixels"):
            to_end(Pictures(), tmp_path, autoencoder=str(tiny), dtype="uint8")

    def test_latents_are_not_encoded_again(self, straight, tmp_path):
        with pytest.raises(HemstitchError, match="encoded or normalised already: encode the images themselves"):
            to_end(Latents(straight), tmp_path)

    def test_numbers_that_cannot_be_stored(self, tmp_path):
        data = Pictures()
        data.images = lambda index_B: (
            Pictures.images(data, index_B) * torch.where(index_B == 9, 1e6, 1.0)[:, None, None, None]
        )
        with pytest.raises(HemstitchError, match=r"sample 9 are not finite as float16: store them as 'bfloat16' or"):
            to_end(data, tmp_path / "half", dtype="float16")
        data.images = lambda index_B: torch.full((len(index_B), 3, 8, 8), torch.nan)
        with pytest.raises(HemstitchError, match=r"sample 0 are not finite as float32: check that image"):
            to_end(data, tmp_path / "nan")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_no_gpu(self, tmp_path):
        with pytest.raises(HemstitchError, match="there is no GPU that torch can use here"):
            to_end(Pictures(), tmp_path, device="cuda")

    def test_places(self, straight, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(HemstitchError, match="is not empty and holds no latents: choose another"):
            to_end(Pictures(), tmp_path)
        with pytest.raises(HemstitchError, match="is a file: give a folder"):
            to_end(Pictures(), tmp_path / "notes.txt")
        with pytest.raises(HemstitchError, match="could not be written"):
            to_end(Pictures(), tmp_path / "notes.txt" / "latents")
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
        out = shutil.copytree(straight, tmp_path / "latents")
        (out / "encoding.json").write_text("{}")
        with pytest.raises(HemstitchError, match=r"encoding.json does not say how the latents here were encoded"):
            to_end(Pictures(), out)

    @pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("-1", "2"), ("0", "0"), ("one", "2")])
    def test_ranks(self, tmp_path, monkeypatch, rank, world):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(HemstitchError, match="RANK is a number below WORLD_SIZE in the environment; they are"):
            to_end(Pictures(), tmp_path)
