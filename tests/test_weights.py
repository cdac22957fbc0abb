"""Weights: parity with the released files and with diffusers, round trips between formats, and files at fault."""

import argparse
import json
import resource
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hemstitch.denoiser import NetDenoiser, Spec
from hemstitch.errors import CheckpointError, HemstitchError
from hemstitch.marked import sha256
from hemstitch.models import NetConfig, build, layers
from hemstitch.process import Process
from hemstitch.weights import convert, load, native, save, save_net, spec_of

TINY = NetConfig(input_size=8, channels=4, patch=2, width=32, depth=2, heads=2, num_classes=10)
DIFFUSERS_LIKE = replace(TINY, frequency_shift=1, mlp_norm_eps=1e-5)
LEARNED = Process("linear", "eps", learned_variance=True)
GOLDEN = {"dit": None, "small": None, "dtr": "dtr", "switch": None}  # name: the family= that it needs


def randomised(module, seed=0):
    """Every weight random: a fresh network outputs zero, which would hide any mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module.eval()


def denoiser_of(config, process=None, space=""):
    process = process or Process("linear", "eps", learned_variance=config.learned_variance)
    return NetDenoiser(randomised(build(config)), process, spec_of(config, space))


def inputs(config, batch=3):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(batch, config.channels, config.input_size, config.input_size, generator=generator)
    return x, torch.tensor([0.0, 431.0, 999.0][:batch]), torch.arange(batch) % config.labels


def assert_same(a, b):
    """The same network, bit for bit, under the same process."""
    assert a.net.config == b.net.config
    assert (a.process, a.spec) == (b.process, b.spec)
    left, right = a.net.state_dict(), b.net.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def golden_state(golden, name):
    return {k.removeprefix(f"{name}/"): v.clone() for k, v in golden.items() if k.startswith(f"{name}/")}


@pytest.fixture
def tiny(tmp_path):
    """A native file of a small DiT."""
    path = tmp_path / "tiny.safetensors"
    save(denoiser_of(TINY), path)
    return path


@contextmanager
def full_disk():
    """No file may grow past 20 kB. (Not a fixture: pytest's own log is a file, too.)"""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Parity: released checkpoints


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("name", GOLDEN)
@torch.no_grad()
def test_golden(golden, assert_close, tmp_path, name, suffix):
    path = tmp_path / f"released{suffix}"
    state = golden_state(golden, name)
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    denoiser = load(path, num_heads=2, family=GOLDEN[name])
    config = denoiser.net.config
    assert (config.input_size, config.num_classes, config.null_label) == (8, 10, True)
    assert denoiser.process == LEARNED
    assert denoiser.spec == Spec(4, 8, 10, null_label=True)
    assert not denoiser.net.training
    assert [n for n, p in denoiser.net.named_parameters() if not p.requires_grad] == ["pos_embed"]
    assert_close(denoiser.net(golden["x"], golden["t"], golden["y"]), golden[f"{name}.out"])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_training_checkpoint(golden, tmp_path, prefix, zipped):
    """What the released training scripts write: ema, model, optimizer and the command line."""
    averaged, live = golden_state(golden, "dit"), golden_state(golden, "dit")
    live["blocks.0.attn.proj.bias"] += 1
    held = {
        "ema": averaged,
        "model": {prefix + key: value for key, value in live.items()},
        "opt": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]},
        "args": argparse.Namespace(model="DiT-XL/2", image_size=256, num_classes=1000),
    }
    path = tmp_path / "0400000.pt"
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    bias = load(path, num_heads=2).net.state_dict()["blocks.0.attn.proj.bias"]
    assert torch.equal(bias, averaged["blocks.0.attn.proj.bias"])
    bias = load(path, num_heads=2, weights="model").net.state_dict()["blocks.0.attn.proj.bias"]
    assert torch.equal(bias, live["blocks.0.attn.proj.bias"])


def test_nested_under_state_dict(golden, tmp_path):
    torch.save({"state_dict": golden_state(golden, "dit"), "epoch": 3}, tmp_path / "a.ckpt")
    assert load(tmp_path / "a.ckpt", num_heads=2).net.config.width == 32
    torch.save({"ema": golden_state(golden, "dit")}, tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match=r"averaged weights only.*weights='ema'"):
        load(tmp_path / "b.ckpt", num_heads=2, weights="model")


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1024, 16), (1152, 16)])
def test_published_widths_need_no_heads(tmp_path, width, heads):
    net = build(replace(TINY, width=width, heads=heads, depth=1))
    torch.save(net.state_dict(), tmp_path / "w.pt")
    assert load(tmp_path / "w.pt").net.config == net.config


@torch.no_grad()
def test_sit(tmp_path):
    """SiT's network is a DiT whose second half of the outputs is ignored, told the time from noise to data."""
    net = randomised(build(TINY))
    torch.save({"ema": net.state_dict()}, tmp_path / "sit.pt")
    denoiser = load(tmp_path / "sit.pt", family="sit", num_heads=2)
    assert denoiser.process == Process("flow", "flow", reverse_time=True)
    assert denoiser.net.config == TINY
    x, _, y = inputs(TINY)
    t = torch.tensor([0.1, 0.5, 0.9])
    said = denoiser(x, t, y)
    velocity = net(x, 1 - t, y)[:, :4]  # x_0 - eps
    torch.testing.assert_close(said.x0 - said.eps, velocity)
    assert said.variance is None


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, family="dtr"),
        replace(TINY, family="switch_dit"),
        replace(TINY, channels=1, learned_variance=False),
        replace(TINY, channels=3, patch=1, input_size=6),
        replace(TINY, patch=4, input_size=20, mlp_ratio=105 / 32),
        replace(TINY, num_classes=0, null_label=False),
        replace(TINY, num_classes=1),
        replace(TINY, null_label=False),
        replace(TINY, family="switch_dit", experts=4, top_k=1),
        replace(TINY, family="switch_dit", experts=3, top_k=1, num_classes=0, null_label=False, channels=1),
    ],
)
def test_sizes_are_read_from_tensors(tmp_path, config):
    net = build(config)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    keywords = {"num_heads": 2}
    if config.family == "dtr":
        keywords["family"] = "dtr"
    if config.experts == 4 or config.top_k == 1:
        keywords["top_k"] = config.top_k
    if config.num_classes and not config.null_label:
        keywords["num_classes"] = config.num_classes
    assert load(tmp_path / "w.pt", **keywords).net.config == config


def test_positions_are_computed_where_missing(golden, tmp_path):
    state = golden_state(golden, "dit")
    expected = state.pop("pos_embed")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="pass input_size="):
        load(tmp_path / "w.pt", num_heads=2)
    denoiser = load(tmp_path / "w.pt", num_heads=2, input_size=8)
    assert torch.equal(denoiser.net.pos_embed, expected)
    assert not denoiser.net.pos_embed.requires_grad


def test_half_precision_is_read_as_float32(golden, tmp_path):
    state = {key: value.to(torch.bfloat16) for key, value in golden_state(golden, "dit").items()}
    torch.save(state, tmp_path / "w.pt")
    read = load(tmp_path / "w.pt", num_heads=2).net.state_dict()
    assert all(torch.equal(read[key], value.float()) for key, value in state.items())


def test_process_keyword(golden, tmp_path):
    torch.save(golden_state(golden, "dit"), tmp_path / "w.pt")
    process = Process("cosine", "v", timesteps=500)
    denoiser = load(tmp_path / "w.pt", num_heads=2, process=process)
    assert denoiser.process == process
    assert denoiser.net.config.timesteps == 500


def test_loading_draws_nothing_from_the_random_generator(tiny):
    before = torch.get_rng_state()
    load(tiny)
    assert torch.equal(torch.get_rng_state(), before)


# Parity: diffusers


def diffusers_net(**changes):
    options = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        "sample_size": 8,
        "num_embeds_ada_norm": 10,
    } | changes
    net = randomised(diffusers.DiTTransformer2DModel(**options))
    first = net.transformer_blocks[0].norm1.emb.state_dict()
    for block in net.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(first)
    return net


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_eps": 1e-6, "sample_size": 12},
        {"out_channels": 4, "patch_size": 4, "num_layers": 1},
        {"in_channels": 1, "out_channels": None, "patch_size": 1, "sample_size": 5},
        {"num_embeds_ada_norm": 0},
    ],
)
@torch.no_grad()
def test_diffusers_network(assert_close, tmp_path, changes):
    theirs = diffusers_net(**changes)
    theirs.save_pretrained(tmp_path / "dit")
    denoiser = load(tmp_path / "dit")
    config = denoiser.net.config
    assert denoiser.process == Process("linear", "eps", learned_variance=config.learned_variance)
    x, t, y = inputs(config)
    assert_close(denoiser.net(x, t, y), theirs(x, t, y).sample)


@torch.no_grad()
def test_diffusers_reads_ours(assert_close, tmp_path, tiny):
    for name, config in {
        "labelled": DIFFUSERS_LIKE,
        "unconditional": replace(DIFFUSERS_LIKE, num_classes=0, null_label=False),
        "no_null": replace(DIFFUSERS_LIKE, null_label=False),
        "grey": replace(DIFFUSERS_LIKE, channels=1, patch=1, learned_variance=False, mlp_norm_eps=1e-6),
    }.items():
        ours = denoiser_of(config)
        save(ours, tmp_path / f"{name}.safetensors")
        notes = convert(tmp_path / f"{name}.safetensors", tmp_path / name, "diffusers")
        theirs, info = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info.values())
        x, t, y = inputs(config)
        assert_close(theirs(x, t, y).sample, ours.net(x, t, y))
        assert not [n for n in notes if "frequencies" in n]
        assert bool([n for n in notes if "zeros" in n]) == (name == "unconditional")
        assert bool([n for n in notes if "null label" in n]) == (name == "no_null")
    notes = convert(tiny, tmp_path / "shifted", "diffusers")
    assert [n for n in notes if "frequencies" in n]


@pytest.mark.parametrize("stored", ["sharded", "bin", "legacy"])
@torch.no_grad()
def test_diffusers_storage(assert_close, tmp_path, stored):
    theirs = diffusers_net()
    folder = tmp_path / "dit"
    theirs.save_pretrained(
        folder, safe_serialization=stored != "bin", max_shard_size="50KB" if stored == "sharded" else "10GB"
    )
    if stored == "legacy":  # the class that released pipelines name, with its other defaults spelled out
        config = json.loads((folder / "config.json").read_text())
        config |= {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "num_vector_embeds": None}
        (folder / "config.json").write_text(json.dumps(config))
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (stored == "sharded")
    net = load(folder).net
    x, t, y = inputs(net.config)
    assert_close(net(x, t, y), theirs(x, t, y).sample)


def pipeline(folder, scheduler):
    """A pipeline folder, without its VAE."""
    diffusers_net().save_pretrained(folder / "transformer")
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))
    return folder


@pytest.mark.parametrize(
    ("scheduler", "process"),
    [
        (diffusers.DDIMScheduler(), LEARNED),
        (diffusers.DDPMScheduler(variance_type="learned_range"), LEARNED),
        (diffusers.DDPMScheduler(), replace(LEARNED, learned_variance=False)),
        (
            diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
            Process("cosine", "v", learned_variance=True),
        ),
        (
            diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
            Process("scaled_linear", "eps", learned_variance=True),
        ),
        (
            diffusers.DPMSolverMultistepScheduler(num_train_timesteps=500, prediction_type="sample"),
            Process("linear", "x0", learned_variance=True, timesteps=500, betas=(1e-4, 0.02)),
        ),
    ],
)
def test_process_of_a_pipeline(tmp_path, scheduler, process):
    folder = pipeline(tmp_path / "pipe", scheduler)
    assert load(folder).process == process
    assert load(folder / "transformer").process == process
    expected = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(process.alphas_cumprod(), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(trained_betas=[0.1, 0.2]),
        diffusers.DDIMScheduler(rescale_betas_zero_snr=True),
        diffusers.FlowMatchEulerDiscreteScheduler(),
    ],
)
def test_a_scheduler_without_process(tmp_path, scheduler):
    folder = pipeline(tmp_path / "pipe", scheduler)
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json.*pass process="):
        load(folder)
    assert load(folder, process=LEARNED).process == LEARNED


@pytest.mark.parametrize(("width", "side"), [(32, 4), (384, 16), (1152, 32)])
def test_positions_are_those_of_diffusers(width, side):
    embed = diffusers.models.embeddings.PatchEmbed(side * 2, side * 2, 2, 4, width)
    assert torch.equal(embed.pos_embed, layers.sincos_positions(width, side)[None])


# Round trips


CONFIGS = [
    TINY,
    DIFFUSERS_LIKE,
    replace(TINY, family="dtr", mask_alpha=2.0, mask_beta=0.5, timesteps=50),
    replace(TINY, family="switch_dit"),
    replace(TINY, family="switch_dit", experts=4, top_k=1, num_classes=0, null_label=False),
    replace(TINY, channels=1, learned_variance=False, patch=1, mlp_ratio=2.5),
    replace(TINY, patch=4, num_classes=0),
]
PROCESSES = [
    None,
    Process("linear", "x0", timesteps=50, betas=(1e-3, 0.3)),
    Process("flow", "flow", reverse_time=True),
]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("config", CONFIGS)
def test_native(tmp_path, config, process):
    denoiser = denoiser_of(config, process, space="sd-vae")
    save(denoiser, tmp_path / "a" / "net.safetensors")
    again = load(tmp_path / "a" / "net.safetensors")
    assert_same(denoiser, again)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["net.safetensors"]


def test_native_keywords_must_agree(tiny):
    load(tiny, family="dit", num_heads=2, top_k=2, input_size=8, num_classes=10)
    assert load(tiny, process=Process("cosine")).process == Process("cosine")
    for keyword, value in {"family": "dtr", "num_heads": 4, "input_size": 16, "num_classes": 1000}.items():
        with pytest.raises(CheckpointError, match=f"says {keyword}=.*leave {keyword}= out"):
            load(tiny, **{keyword: value})
    with pytest.raises(CheckpointError, match="not SiT's"):
        load(tiny, family="sit")


KEYWORDS = {"dit": {}, "small": {}, "dtr": {"family": "dtr"}, "switch": {}}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", KEYWORDS)
def test_native_to_released_and_back(golden_denoisers, tmp_path, name, suffix):
    original = golden_denoisers[name]
    save(original, tmp_path / "a.safetensors")
    notes = convert(tmp_path / "a.safetensors", tmp_path / f"b{suffix}", "released")
    assert len(notes) == 1
    assert "num_heads=2" in notes[0]
    assert convert(tmp_path / f"b{suffix}", tmp_path / "c.safetensors", "native", num_heads=2, **KEYWORDS[name]) == []
    assert_same(original, load(tmp_path / "c.safetensors"))


def test_released_pt_holds_only_tensors(tiny, tmp_path):
    """What released scripts expect: a plain dictionary, under the released names."""
    convert(tiny, tmp_path / "b.pt", "released")
    held = torch.load(tmp_path / "b.pt", weights_only=True)
    assert type(held) is dict
    assert held.keys() == build(TINY).state_dict().keys()


@pytest.mark.parametrize(
    ("config", "process", "space", "expected"),
    [
        (TINY, LEARNED, "", ["num_heads=2"]),
        (TINY, LEARNED, "sd-vae", ["num_heads=2", "'sd-vae' is lost"]),
        (TINY, Process("flow", "flow", reverse_time=True), "", ["family='sit', num_heads=2"]),
        (TINY, Process("cosine"), "", ["process=Process(schedule='cosine'"]),
        (replace(TINY, family="dtr", mask_beta=0.5), LEARNED, "", ["family='dtr'", "mask_beta=0.8"]),
        (replace(TINY, family="switch_dit", top_k=1), LEARNED, "", ["top_k=1"]),
        (replace(TINY, null_label=False), LEARNED, "", ["num_classes=10"]),
        (replace(TINY, frequency_shift=1), LEARNED, "", ["num_heads=2", "frequency_shift=0"]),
        (replace(TINY, width=384, heads=6, depth=1), LEARNED, "", []),
    ],
)
def test_released_notes(tmp_path, config, process, space, expected):
    save(denoiser_of(config, process, space), tmp_path / "a.safetensors")
    notes = convert(tmp_path / "a.safetensors", tmp_path / "b.pt", "released")
    assert len(notes) == len(expected)
    assert all(part in note for part, note in zip(expected, notes, strict=True))


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("config", [c for c in CONFIGS if c.family == "dit" and c.mlp_ratio == 4])
def test_native_to_diffusers_and_back(tmp_path, config, process):
    original = denoiser_of(config, process, space="sd-vae")
    save(original, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b", "diffusers")
    assert_same(original, load(tmp_path / "b"))
    convert(tmp_path / "b", tmp_path / "c.safetensors", "native")
    assert_same(original, load(tmp_path / "c.safetensors"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b", "c.safetensors"]


def test_diffusers_to_native_to_diffusers(tmp_path):
    theirs = diffusers_net()
    theirs.save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b.safetensors", "native")
    convert(tmp_path / "b.safetensors", tmp_path / "c", "diffusers")
    again = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "c")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in theirs.state_dict().items())
    ours, before = dict(again.config), dict(theirs.config)
    assert {k: ours[k] for k in before if not k.startswith("_")} == {
        k: v for k, v in before.items() if not k.startswith("_")
    }


def checkpoint(run, step, seed, complete=True):
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    for name, offset in (("model", 0), ("ema", 1)):
        net = randomised(build(TINY), seed + offset)
        save_net(folder / f"{name}.safetensors", net.state_dict(), TINY, LEARNED, native.Samples("digits"))
    if complete:
        contents = {f.name: {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in folder.iterdir()}
        (folder / "COMPLETE").write_text(json.dumps(contents))
    return folder


def is_seed(denoiser, seed):
    expected = randomised(build(TINY), seed).state_dict()
    return all(torch.equal(value, expected[key]) for key, value in denoiser.net.state_dict().items())


def test_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no complete checkpoint yet"):
        load(run)
    checkpoint(run, 900, 10)
    newest = checkpoint(run, 1000, 20)
    cut = checkpoint(run, 1100, 30, complete=False)
    assert is_seed(load(run), 21)
    assert is_seed(load(str(run), weights="model"), 20)
    assert load(run).spec == Spec(4, 8, 10, null_label=True, space="digits")
    assert is_seed(load(newest), 21)
    assert is_seed(load(newest / "model.safetensors"), 20)
    with pytest.raises(CheckpointError, match="no COMPLETE marker"):
        load(cut)
    with pytest.raises(HemstitchError, match="'ema' or 'model', not 'best'"):
        load(run, weights="best")
    (newest / "ema.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"passing over .*ema\.safetensors is missing"):
        assert is_seed(load(run), 11)
    with pytest.raises(CheckpointError, match=r"ema\.safetensors is missing"):
        load(newest)


def test_a_run_that_replaces_its_checkpoint_meanwhile(tmp_path, monkeypatch):
    """A training run with keep=1 removes the checkpoint that was the newest when `load` looked."""
    from hemstitch.weights import native

    run = tmp_path / "run"
    old = checkpoint(run, 1, 10)
    looked = native.in_run

    def replaced(folder, weights):
        found = looked(folder, weights)
        if old.exists():
            shutil.rmtree(old)
            checkpoint(run, 2, 20)
        return found

    monkeypatch.setattr(native, "in_run", replaced)
    assert is_seed(load(run), 21)


# Fault: hostile and damaged files


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_hostile_pickle(golden, tmp_path, zipped, nested):
    trap = tmp_path / "it_ran"
    held = {"args": Hostile(trap), "ema": golden_state(golden, "dit")} if nested else Hostile(trap)
    path = tmp_path / "hostile.pt"
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"hostile\.pt was refused, and nothing in it was run.*safetensors"):
        load(path, num_heads=2)
    assert not trap.exists()
    torch.load(path, weights_only=False)  # the trap is real
    assert trap.exists()


def test_refusals_do_not_advise_to_run_the_file(tmp_path):
    """torch's own message says how to run it."""
    for name, held in {"a.pt": Hostile(tmp_path / "x"), "b.pt": tmp_path}.items():
        torch.save({"ema": held}, tmp_path / name)
        with pytest.raises(CheckpointError) as caught:
            load(tmp_path / name)
        assert "weights_only" not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"refused.*TorchScript"):
        load(tmp_path / "a.pt")


def test_hostile_bin_in_a_diffusers_folder(tmp_path):
    diffusers_net().save_pretrained(tmp_path / "dit")
    (tmp_path / "dit" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(Hostile(tmp_path / "it_ran"), tmp_path / "dit" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="refused"):
        load(tmp_path / "dit")
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_truncated_pt(golden, tmp_path, kept, zipped):
    whole = tmp_path / "whole.pt"
    torch.save({"ema": golden_state(golden, "dit")}, whole, _use_new_zipfile_serialization=zipped)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(whole.read_bytes()[: int(kept * whole.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"cut\.pt"):
        load(cut, num_heads=2)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_truncated_safetensors(tiny, kept):
    tiny.write_bytes(tiny.read_bytes()[: int(kept * tiny.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"tiny\.safetensors is damaged"):
        load(tiny)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"<html>not found</html>", b"PK\x03\x04 nothing", b"\x80\x02 nothing", bytes(range(7, 256)) * 4]
)
def test_garbage(tmp_path, content, suffix):
    path = tmp_path / f"download{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="download"):
        load(path)


def test_no_such_file(tmp_path):
    with pytest.raises(CheckpointError, match="no file or folder"):
        load("facebook/DiT-XL-2-256")
    with pytest.raises(CheckpointError, match="holds no weights: give"):
        load(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match="not named as a file of weights"):
        load(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.attn.qkv.bias"), r"missing blocks\.1\.attn\.qkv\.bias"),
        (lambda s: s.update(extra=torch.ones(1)), "unexpected extra"),
        (lambda s: s.update({"blocks.9.extra": torch.ones(1)}), r"missing blocks\.3\..* and .* more"),
        (lambda s: s.update({"blocks.0.attn.proj.bias": torch.ones(3)}), r"misshapen .*\(3,\) for \(32,\)"),
        (lambda s: s.update({"blocks.0.attn.proj.bias": torch.ones(32).int()}), "not dense floats"),
        (lambda s: s.update({"blocks.0.attn.proj.weight": torch.eye(32).to_sparse()}), "not dense floats"),
        (lambda s: s.update({"blocks.0.attn.proj.bias": torch.ones(32, device="meta")}), "not dense floats"),
        (lambda s: s.update({"x_embedder.proj.weight": torch.ones(32)}), "has 4 dimensions"),
        (lambda s: s.update({"x_embedder.proj.weight": torch.ones(1, 1, 1, 1).expand(1 << 20, 4, 2, 2)}), "num_heads"),
        (lambda s: s.update(pos_embed=torch.ones(1, 15, 32)), "no square"),
        (lambda s: s.update({"final_layer.linear.weight": torch.ones(12, 32)}), "3 output channels for 4"),
        (lambda s: s.update({"module.pos_embed": torch.ones(1)}), "pos_embed twice"),
        (lambda s: s.update(step=3), "'step' is int, not a tensor"),
        (lambda s: s.pop("x_embedder.proj.weight"), "no diffusion transformer"),
        (lambda s: s.clear(), "holds no .* but nothing"),
    ],
)
def test_wrong_keys(golden, tmp_path, change, message):
    state = golden_state(golden, "dit")
    change(state)
    path = tmp_path / "wrong.pt"
    torch.save(state, path)
    heads = None if message == "num_heads" else 2
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path, num_heads=heads)
    assert "wrong.pt" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("dit", {}, "pass num_heads="),
        ("dit", {"num_heads": 5}, "multiple of heads"),
        ("dit", {"num_heads": 2, "input_size": 16}, "samples of 8x8, not 16"),
        ("dit", {"num_heads": 2, "num_classes": 7}, "11 labels"),
        ("dit", {"num_heads": 2, "top_k": 1}, "no experts"),
        ("dit", {"num_heads": 2, "family": "switch_dit"}, "no expert routers"),
        ("switch", {"num_heads": 2, "family": "dit"}, "expert routers"),
        ("switch", {"num_heads": 2, "top_k": 4}, "top_k lies in"),
        ("dit", {"num_heads": 2, "family": "unet"}, "family is one of"),
    ],
)
def test_keywords_that_do_not_fit(golden, tmp_path, name, keywords, message):
    torch.save(golden_state(golden, name), tmp_path / "w.pt")
    with pytest.raises(HemstitchError, match=message):
        load(tmp_path / "w.pt", **keywords)


def test_unusual_experts_ask_for_top_k(tmp_path):
    torch.save(build(replace(TINY, family="switch_dit", experts=4)).state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"4 experts.*pass top_k="):
        load(tmp_path / "w.pt", num_heads=2)


def test_process_that_needs_a_variance(tmp_path):
    save(denoiser_of(replace(TINY, learned_variance=False)), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="without learned_variance"):
        load(tmp_path / "a.safetensors", process=LEARNED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(code="import os"), "code"),
        (lambda d: d["net"].update(rotary=True), "rotary"),
        (lambda d: d["net"].update(width="32"), "width is a int"),
        (lambda d: d["net"].update(width=64), "misshapen"),
        (lambda d: d["net"].update(width=1 << 40, heads=1), "misshapen|cannot be built"),
        (lambda d: d["net"].update(depth=1 << 40), "2 blocks"),
        (lambda d: d["net"].update(family="unet"), "family is one of"),
        (lambda d: d["net"].update(heads=5), "multiple of heads"),
        (lambda d: d["net"].update(mlp_ratio=float("nan")), "mlp_ratio is above 0"),
        (lambda d: d["process"].update(betas=[1]), "list of 2"),
        (lambda d: d["process"].update(schedule="sigmoid"), "schedule"),
        (lambda d: d["spec"].update(space=3), "space"),
        (lambda d: d.pop("net"), "net"),
        (lambda d: d.update(format=2), "format 1, not 2"),
        (lambda d: d.pop("format"), "format 1, not None"),
    ],
)
def test_metadata_is_checked(tiny, change, message):
    with safe_open(tiny, "pt") as file:
        data = json.loads(file.metadata()["hemstitch"])
    change(data)
    save_file(load_file(tiny), tiny, {"hemstitch": json.dumps(data)})
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tiny)
    assert "tiny.safetensors" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_metadata_is_json(tiny, text):
    save_file(load_file(tiny), tiny, {"hemstitch": text})
    with pytest.raises(CheckpointError, match=r"tiny\.safetensors.*JSON"):
        load(tiny)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"activation_fn": "geglu"}, "activation_fn='gelu-approximate'"),
        ({"attention_bias": False}, "attention_bias=True"),
        ({"norm_type": "layer_norm"}, "norm_type"),
        ({"interpolation_scale": 2}, "interpolation_scale"),
        ({"num_layers": 2}, "3 blocks.* depth 2"),
        ({"num_layers": "3"}, "num_layers is a whole number"),
        ({"norm_eps": "small"}, "norm_eps is a number"),
        ({"attention_head_dim": 32}, "misshapen"),
        ({"out_channels": 5}, "out_channels"),
        ({"patch_size": 3}, "patch divides"),
        ({"num_embeds_ada_norm": 12}, "misshapen y_embedder"),
    ],
)
def test_diffusers_config_is_checked(tmp_path, changes, message):
    diffusers_net().save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_diffusers_weights_are_checked(tmp_path):
    net = diffusers_net()
    net.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = load_file(path)
    positions = {"pos_embed.pos_embed": net.pos_embed.pos_embed}

    def refused(state, message):
        save_file(state, path)
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path)

    refused({k: v for k, v in whole.items() if k != "proj_out_1.bias"}, r"missing proj_out_1\.bias")
    refused(whole | {"extra": torch.ones(1)}, "unexpected extra")
    name = "transformer_blocks.2.norm1.emb.class_embedder.embedding_table.weight"
    refused(whole | {name: whole[name] + 1}, "embedders differ")
    refused(whole | {"pos_embed.pos_embed": positions["pos_embed.pos_embed"] + 1}, "fixed position table")
    save_file(whole | positions, path)
    load(tmp_path)
    with pytest.raises(CheckpointError, match="load its folder"):
        load(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="fetch its weights"):
        load(tmp_path)


@pytest.mark.parametrize("index", [{"weight_map": {"a": "../secret.safetensors"}}, {"weight_map": {"a": 3}}, {}])
def test_shards_lie_in_the_folder(tmp_path, index):
    diffusers_net().save_pretrained(tmp_path / "dit")
    whole = tmp_path / "dit" / "diffusion_pytorch_model.safetensors"
    whole.rename(tmp_path / "secret.safetensors")
    whole.with_name(whole.name + ".index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="weight_map"):
        load(tmp_path / "dit")


def test_other_pipelines_are_sent_to_the_bridge(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(CheckpointError, match=r"StableDiffusionPipeline.*hemstitch\.bridge"):
        load(tmp_path)
    (tmp_path / "model_index.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"model_index\.json is damaged"):
        load(tmp_path)


# Fault: writing


@pytest.mark.parametrize("family", ["dtr", "switch_dit"])
def test_routers_have_no_place_in_diffusers(tmp_path, family):
    save(denoiser_of(replace(TINY, family=family)), tmp_path / "a.safetensors")
    with pytest.raises(HemstitchError, match=f"diffusers has no {family} network"):
        convert(tmp_path / "a.safetensors", tmp_path / "b", "diffusers")
    assert not (tmp_path / "b").exists()


def test_networks_that_diffusers_cannot_say(tmp_path):
    save(denoiser_of(replace(TINY, mlp_ratio=2.0)), tmp_path / "a.safetensors")
    with pytest.raises(HemstitchError, match="mlp_ratio 4, this network 2"):
        convert(tmp_path / "a.safetensors", tmp_path / "b", "diffusers")
    moved = denoiser_of(TINY)
    with torch.no_grad():
        moved.net.pos_embed.add_(1)
    save(moved, tmp_path / "c.safetensors")
    with pytest.raises(HemstitchError, match="pos_embed holds others"):
        convert(tmp_path / "c.safetensors", tmp_path / "b", "diffusers")


def test_rounded_positions_are_noted(golden, tmp_path):
    torch.save({k: v.half() for k, v in golden_state(golden, "dit").items()}, tmp_path / "a.pt")
    notes = convert(tmp_path / "a.pt", tmp_path / "b", "diffusers", num_heads=2)
    assert [n for n in notes if "positions are computed anew" in n]


TARGETS = {"native": "b.safetensors", "released": "b.pt", "diffusers": "b"}


@pytest.mark.parametrize("form", TARGETS)
def test_nothing_is_overwritten(tiny, tmp_path, form):
    target = tmp_path / TARGETS[form]
    if form == "diffusers":
        target.mkdir()
        convert(tiny, target, form)  # an empty folder is fine
    else:
        target.write_text("precious")
    before = sorted(target.iterdir()) if form == "diffusers" else target.read_text()
    with pytest.raises(HemstitchError, match="is there already"):
        convert(tiny, target, form)
    assert before == (sorted(target.iterdir()) if form == "diffusers" else target.read_text())


@pytest.mark.parametrize(
    ("form", "target", "message"),
    [
        ("native", "b.pt", r"named \.safetensors"),
        ("released", "b.bin", r"named \.pt"),
        ("diffusers", "b.safetensors", "is a folder"),
        ("onnx", "b", "format is one of"),
    ],
)
def test_targets_are_named_for_their_format(tiny, tmp_path, form, target, message):
    with pytest.raises(HemstitchError, match=message):
        convert(tiny, tmp_path / target, form)
    assert list(tmp_path.iterdir()) == [tiny]


def test_save_takes_its_own_networks_and_suffix(tmp_path):
    with pytest.raises(HemstitchError, match=r"\.safetensors"):
        save(denoiser_of(TINY), tmp_path / "a.pt")
    with pytest.raises(HemstitchError, match="Linear is not one"):
        save(NetDenoiser(torch.nn.Linear(1, 1), LEARNED, Spec(1, 1)), tmp_path / "a.safetensors")


@pytest.mark.parametrize("form", TARGETS)
def test_no_space(tiny, tmp_path, form):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(HemstitchError, match="could not be written") as caught, full_disk():
        convert(tiny, tmp_path / TARGETS[form], form)
    assert TARGETS[form] in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_no_space_leaves_the_file_before(tiny):
    denoiser, before = load(tiny), tiny.read_bytes()
    with pytest.raises(HemstitchError, match=r"tiny\.safetensors could not be written"), full_disk():
        save(denoiser, tiny)
    assert tiny.read_bytes() == before
    assert list(tiny.parent.iterdir()) == [tiny]


@pytest.mark.parametrize("form", TARGETS)
def test_no_way_to_write(tiny, tmp_path, form):
    (tmp_path / "file").write_text("a file is no folder")
    with pytest.raises(HemstitchError, match="could not be written"):
        convert(tiny, tmp_path / "file" / TARGETS[form], form)


def test_no_way_to_read(tmp_path):
    (tmp_path / "a.pt").symlink_to(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        load(tmp_path / "a.pt")
