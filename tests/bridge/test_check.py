"""hemstitch check: pairs that can be stitched, each way in which a pair cannot, and what is no pair at all."""

import inspect
import json
import os
import random
import shutil
import subprocess
import sys

import diffusers
import pytest
import tiny

from hemstitch import cli
from hemstitch.bridge.compat import CONVERTED, Finding, Findings, check, compare_denoisers, compare_schedulers
from hemstitch.bridge.compat.denoisers import DEFAULTS
from hemstitch.bridge.compat.parts import compare_autoencoders, compare_text_encoders
from hemstitch.bridge.compat.sources import MOST_BYTES
from hemstitch.errors import HemstitchError, MissingExtraError

MAKE = {"unet": tiny.unet_sd, "sdxl": tiny.unet_sdxl, "uncond": tiny.unet_uncond, "dit": tiny.transformer_dit}
MAKE |= {"pixart": tiny.transformer_pixart, "sd3": tiny.transformer_sd3, "flux": tiny.transformer_flux}
MAKE |= {"wan": tiny.transformer_wan}
SD = {"_class_name": "DDIMScheduler", **tiny.SD_BETAS}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


@pytest.fixture(scope="module")
def configs():
    """The configuration of a tiny denoiser of each kind, as its file has it."""
    made = {name: make() for name, make in MAKE.items()}
    return {name: {**json.loads(m.to_json_string())} for name, m in made.items()}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A Stable Diffusion pipeline and a smaller one of the same VAE, each in its folder."""
    folder = tmp_path_factory.mktemp("pipelines")
    pipe = tiny.build("sd")
    pipe.save_pretrained(folder / "large")
    pipe.unet = tiny.small("sd")
    pipe.save_pretrained(folder / "small")
    return folder


@pytest.fixture
def pair(stored, tmp_path):
    """The stored pair to be changed at will."""
    shutil.copytree(stored, tmp_path / "pair")
    return tmp_path / "pair" / "small", tmp_path / "pair" / "large"


def change(path, **values):
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **values}))


def levels(found):
    """What is not ok, with its level."""
    return {f.what: f.level for f in found if f.level != "ok"}


def finding(found, what):
    (one,) = [f for f in found if f.what == what]
    return one


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_a_small_member_of_every_family_fits(name):
    pipe = tiny.build(name)
    unknown = {"scheduler"}  # the small one is a lone denoiser
    if name not in ("ddim", "ddpm"):
        unknown.add("VAE")
    if name not in ("ldm", "ddim", "ddpm", "dit"):
        unknown.add("text encoder")
    own = {"wan_two": {"transformers"}}.get(name, set())
    residuals = {"sdxl_controlnet": {"controlnet"}, "sdxl_adapter": {"adapter"}}.get(name, set())
    assert levels(check(tiny.small(name), pipe).found) == dict.fromkeys(unknown | own | residuals, "note")
    assert levels(check(pipe, pipe).found) == dict.fromkeys(own, "note")


def test_stored_pipelines_fit_in_every_line(stored):
    found = check(stored / "small", str(stored / "large"))
    assert levels(found.found) == {}
    assert found.ok
    assert {f.what for f in found.found} >= {
        "denoiser", "latent channels", "resolution", "text width", "text encoder", "VAE", "scheduler",
        "prediction type", "noise schedule", "time conditioning",
    }  # fmt: skip
    assert finding(found.found, "size").small == "8, 16 × 1 layers"
    assert finding(found.found, "size").large == "16, 32 × 2 layers"
    assert "same weights" in finding(found.found, "VAE").small


@pytest.mark.parametrize(
    ("kind", "small", "large", "what", "level", "fix"),
    [
        ("unet", {"_class_name": "UNet2DModel"}, {}, "denoiser", "refuse", "take a small UNet2DConditionModel"),
        ("unet", {"in_channels": 9}, {}, "latent channels", "refuse", "two inpainting U-Nets"),
        ("unet", {}, {"in_channels": 9}, "latent channels", "refuse", "two inpainting U-Nets"),
        ("unet", {"in_channels": 16}, {}, "latent channels", "refuse", "trained on the same autoencoder"),
        ("flux", {"in_channels": 384, "out_channels": 16}, {}, "latent channels", "refuse", "Flux Fill"),
        ("wan", {"in_channels": 36}, {"in_channels": 16}, "latent channels", "refuse", "image to video"),
        ("unet", {"out_channels": 8}, {}, "output channels", "note", "cut off"),
        ("unet", {}, {"out_channels": 8}, "output channels", "note", "filled with zeros"),
        ("unet", {"out_channels": 7}, {}, "output channels", "refuse", "predict the same"),
        ("unet", {"sample_size": 32}, {}, "resolution", "note", "any size"),
        ("dit", {"sample_size": 16}, {}, "resolution", "refuse", "sample_size 8"),
        ("uncond", {"block_out_channels": [8] * 6}, {}, "resolution", "refuse", "fewer blocks"),
        ("pixart", {"sample_size": 64}, {}, "resolution", "note", "any size"),
        ("pixart", {"sample_size": 128}, {}, "micro-conditions", "refuse", "use_additional_conditions"),
        ("pixart", {}, {"use_additional_conditions": True}, "micro-conditions", "note", "does without"),
        ("sd3", {"pos_embed_max_size": 12}, {}, "positions", "note", "pictures up to that size"),
        ("sd3", {"pos_embed_max_size": 4}, {}, "positions", "note", "height="),
        ("sd3", {"patch_size": 4}, {}, "patch size", "note", "multiples of both"),
        ("unet", {"cross_attention_dim": 48}, {}, "text width", "refuse", "CLIP-L"),
        ("unet", {"encoder_hid_dim": 48}, {}, "text width", "refuse", "CLIP-L"),
        ("pixart", {"caption_channels": 48}, {}, "text width", "refuse", "T5-XXL"),
        ("sd3", {"joint_attention_dim": 48}, {}, "text width", "refuse", "family"),
        ("wan", {"text_dim": 48}, {}, "text width", "refuse", "family"),
        ("flux", {"pooled_projection_dim": 48}, {}, "pooled text", "refuse", "same text encoders"),
        ("sdxl", {"projection_class_embeddings_input_dim": 2560}, {}, "added conditions", "refuse", "refiner"),
        ("sdxl", {"addition_time_embed_dim": 4}, {}, "added conditions", "refuse", "SSD-1B"),
        ("unet", {}, {"addition_embed_type": "text_time"}, "added conditions", "refuse", "SSD-1B"),
        ("wan", {"image_dim": 1280, "added_kv_proj_dim": 1536}, {}, "picture prompt", "refuse", "image to video"),
        ("unet", {"encoder_hid_dim_type": "ip_image_proj"}, {}, "picture prompt", "refuse", "unload_ip_adapter"),
        ("dit", {"num_embeds_ada_norm": 10}, {}, "classes", "refuse", "same classes"),
        ("uncond", {"num_class_embeds": 10}, {}, "classes", "refuse", "same classes"),
        ("unet", {"class_embed_type": "projection"}, {}, "class embedding", "refuse", "class_embed_type"),
        ("uncond", {"time_embedding_type": "fourier"}, {}, "time embedding", "refuse", "two alike"),
        ("unet", {"time_cond_proj_dim": 256}, {}, "time conditioning", "refuse", "the small one is a guided student"),
        ("unet", {}, {"time_cond_proj_dim": 256}, "time conditioning", "refuse", "the large one is a guided student"),
        ("unet", {"time_cond_proj_dim": 512}, {"time_cond_proj_dim": 256}, "time conditioning", "refuse", "widths"),
        ("flux", {"guidance_embeds": True}, {}, "time conditioning", "refuse", "classifier-free"),
        ("flux", {}, {"guidance_embeds": True}, "time conditioning", "refuse", "classifier-free"),
        ("flux", {"quantization_config": {"bits": 4}}, {}, "quantisation", "note", 'keep="both"'),
    ],
)
def test_each_mismatch_of_denoisers_is_found_with_its_fix(configs, kind, small, large, what, level, fix):
    base = configs[kind]
    assert levels(compare_denoisers(base, base)) == {}
    found = compare_denoisers({**base, **small}, {**base, **large})
    assert levels(found)[what] == level
    assert fix in finding(found, what).fix
    beside = {"resolution", "micro-conditions"} if kind == "pixart" else set()  # one key, two rules
    assert set(levels(found)) - beside <= {what}


@pytest.mark.parametrize(
    ("kind", "small"),
    [
        ("unet", {"block_out_channels": [4], "layers_per_block": 1, "attention_head_dim": 4, "norm_num_groups": 2}),
        ("pixart", {"num_layers": 1, "cross_attention_dim": 16, "num_attention_heads": 2, "num_embeds_ada_norm": 7}),
        ("sd3", {"qk_norm": "rms_norm", "caption_projection_dim": 8, "pos_embed_max_size": 99}),
        ("unet", {"encoder_hid_dim": 32, "encoder_hid_dim_type": "text_proj", "cross_attention_dim": 64}),
        ("unet", {"cross_attention_dim": [32, 32]}),
        ("unet", {"some_new_key": 7}),
    ],
)
def test_what_may_differ_is_passed_over(configs, kind, small):
    assert levels(compare_denoisers({**configs[kind], **small}, configs[kind])) == {}


def test_a_learned_variance_is_refused_where_the_scheduler_reads_it(configs):
    two = {**configs["unet"], "out_channels": 8}
    for variance, level in (
        ("learned_range", "refuse"),
        ("learned", "refuse"),
        ("fixed_small", "note"),
        (None, "note"),
    ):
        scheduler = {"_class_name": "DDPMScheduler", "variance_type": variance}
        found = compare_denoisers(configs["unet"], two, scheduler)
        assert levels(found) == {"output channels": level}
    assert (
        "fixed_small"
        in finding(compare_denoisers(configs["unet"], two, {"variance_type": "learned"}), "output channels").fix
    )


def test_older_files_are_read_as_diffusers_reads_them(configs):
    """Keys that are missing, and the class that DiT and PixArt had once."""
    old = {k: v for k, v in configs["unet"].items() if "time_cond" not in k and "encoder_hid" not in k}
    assert levels(compare_denoisers(old, configs["unet"])) == {}
    for kind, norm in (("dit", "ada_norm_zero"), ("pixart", "ada_norm_single")):
        legacy = {**configs[kind], "_class_name": "Transformer2DModel", "norm_type": norm}
        assert levels(compare_denoisers(legacy, configs[kind])) == {}
    for name, known in DEFAULTS.items():
        signature = inspect.signature(getattr(diffusers, name).__init__).parameters
        for key, value in known.items():
            default = signature[key].default
            assert (list(default) if isinstance(default, tuple) else default) == value, (name, key)


@pytest.mark.parametrize(
    ("small", "large", "expected", "fix"),
    [
        (SD, {**SD, "_class_name": "EulerDiscreteScheduler"}, {"scheduler": "note"}, "Turbo"),
        ({**SD, "prediction_type": "v_prediction"}, SD, {"prediction type": "refuse"}, 'processes={"small": '),
        ({**SD, "beta_end": 0.02}, SD, {"noise schedule": "refuse"}, 'processes={"small": '),
        ({**SD, "beta_schedule": "linear"}, SD, {"noise schedule": "refuse"}, "amounts of noise"),
        ({**SD, "num_train_timesteps": 4000}, SD, {"noise schedule": "refuse"}, "same timestep"),
        ({**SD, "rescale_betas_zero_snr": True}, SD, {"noise schedule": "refuse"}, "not converted"),
        ({**SD, "trained_betas": [0.1]}, {**SD, "trained_betas": [0.2]}, {"noise schedule": "refuse"}, "not converted"),
        (FLOW, SD, {"scheduler": "note", "prediction type": "refuse", "noise schedule": "refuse"}, "Turbo"),
        ({**FLOW, "shift": 1.0}, FLOW, {"flow shift": "note"}, "solver's steps"),
        (FLOW, {**FLOW, "use_dynamic_shifting": True}, {"flow shift": "note"}, "solver's steps"),
        ({**SD, "timestep_type": "continuous"}, SD, {"timesteps": "refuse"}, "logarithm"),
        ({"_class_name": "EDMEulerScheduler"}, {"_class_name": "EDMEulerScheduler", "sigma_data": 1},
         {"noise schedule": "refuse"}, "not converted"),
        ({"_class_name": "DDIMScheduler"}, {"_class_name": "PNDMScheduler", "beta_start": 0.0001},
         {"scheduler": "note"}, "both"),
        ({"_class_name": "LCMScheduler"}, SD, {"scheduler": "note"}, "LCM"),
        ({**SD, "beta_schedule": "squaredcos_cap_v2"},
         {**SD, "beta_schedule": "squaredcos_cap_v2", "beta_end": 1}, {}, ""),
        ({**SD, "timestep_spacing": "trailing", "steps_offset": 3, "thresholding": True}, SD, {}, ""),
    ],
)  # fmt: skip
def test_schedulers(small, large, expected, fix):
    found = compare_schedulers(small, large)
    assert levels(found) == expected
    assert fix in "".join(f.fix for f in found)
    assert {f.what for f in found if f.level == "refuse"} <= {*CONVERTED, "timesteps"}


def test_schedule_words_tell_what_diffusers_computes():
    """Schedulers that are called the same make the same noise, and others not."""
    options = [tiny.SD_BETAS, {}, {"beta_schedule": "squaredcos_cap_v2"}, {"rescale_betas_zero_snr": True}]
    made = [diffusers.DDIMScheduler(**o) for o in options] + [
        diffusers.LCMScheduler(),
        diffusers.EulerDiscreteScheduler(),
    ]
    for a in made:
        for b in made:
            said = levels(compare_schedulers(a.config, b.config))
            assert ("noise schedule" not in said) == a.alphas_cumprod.equal(b.alphas_cumprod), (a, b)


KL = {"_class_name": "AutoencoderKL", "latent_channels": 4, "scaling_factor": 0.18215, "block_out_channels": [1] * 4}


@pytest.mark.parametrize(
    ("small", "same", "level", "fix"),
    [
        ({}, True, "ok", ""),
        ({}, None, "ok", ""),
        ({}, False, "note", "decode a latent"),
        ({"latent_channels": 16}, None, "refuse", "channels differ"),
        ({"scaling_factor": 0.13025}, None, "refuse", "scaling factor differ"),
        ({"shift_factor": 0.1}, None, "refuse", "shift differ"),
        ({"shift_factor": None}, None, "ok", ""),
        ({"block_out_channels": [1] * 3}, None, "refuse", "halvings differ"),
        ({"latents_mean": [1.0]}, None, "refuse", "latents_mean differ"),
        ({"_class_name": "AutoencoderTiny", "scaling_factor": 1.0}, None, "note", "decode a latent"),
        ({"_class_name": "VQModel"}, None, "refuse", "large one's VAE"),
    ],
)
def test_autoencoders(small, same, level, fix):
    (one,) = compare_autoencoders(
        {**KL, **small}, {**KL, "latents_mean": [0.0]} if "latents_mean" in small else KL, same
    )
    assert one.level == level
    assert fix in one.fix
    old = {k: v for k, v in KL.items() if k != "scaling_factor"}
    assert compare_autoencoders(old, KL, None)[0].level == "ok"


def test_text_encoders():
    base = {
        "_class_name": "CLIPTextModel",
        "model_type": "clip_text_model",
        "hidden_size": 768,
        "num_hidden_layers": 12,
    }
    pooled = {**base, "_class_name": "CLIPTextModelWithProjection", "projection_dim": 768}
    assert levels(compare_text_encoders("text encoder", base, pooled)) == {}
    for other in ({"hidden_size": 1024}, {"num_hidden_layers": 23}, {"vocab_size": 7}, {"model_type": "t5"}):
        (one,) = compare_text_encoders("text encoder", {**base, **other}, base)
        assert one.level == "refuse"
        assert "trained with another" in one.fix
    assert compare_text_encoders("text encoder", {**pooled, "projection_dim": 1}, pooled)[0].level == "refuse"


def test_stored_pipelines_are_compared_whole(pair):
    small, large = pair
    change(small / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    change(small / "text_encoder" / "config.json", num_hidden_layers=3)
    weights = small / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\7")
    found = check(small, large)
    assert levels(found.found) == {"prediction type": "refuse", "text encoder": "refuse", "VAE": "note"}
    assert not found.ok
    assert [f.what for f in found.refusals] == ["text encoder", "prediction type"]
    weights.rename(weights.with_name("other.safetensors"))
    assert finding(check(small, large).found, "VAE").level == "ok"
    index = json.loads((small / "model_index.json").read_text())
    change(small / "model_index.json", tokenizer=["transformers", "T5Tokenizer"], scheduler=[None, None])
    change(small / "text_encoder" / "config.json", num_hidden_layers=2)
    assert levels(check(small, large).found) == {"tokenizer": "note", "scheduler": "note"}
    del index["vae"]
    (small / "model_index.json").write_text(json.dumps(index))
    assert levels(check(small, large).found) == {"prediction type": "refuse", "VAE": "refuse"}


def test_wan_pipelines_say_how_they_tell_time(tmp_path):
    one, two = tiny.build("wan"), tiny.build("wan")
    two.register_to_config(expand_timesteps=True)
    assert levels(check(one, two).found) == {"timesteps of patches": "refuse"}
    pair = tiny.build("wan_two")
    found = check(pair, pair, subfolder="transformer_2")
    assert found.ok
    assert 'component="transformer"' in finding(check(one, pair).found, "transformers").fix


def test_lone_denoisers_and_pipelines_mix(stored, tmp_path):
    lone = tmp_path / "lone"
    shutil.copytree(stored / "small" / "unet", lone)
    found = check(lone, stored / "large")
    assert levels(found.found) == {"VAE": "note", "text encoder": "note", "scheduler": "note"}
    assert f"not known: {lone} is a lone denoiser" in finding(found.found, "VAE").fix
    assert levels(check(stored / "large", lone).found) == levels(found.found)
    both = check(lone, stored / "small" / "unet")
    assert finding(both.found, "VAE").large == "not known"
    within = check(tmp_path, lone, subfolder="lone")
    assert within.ok
    assert check(tiny.small("sd"), stored / "large").ok
    assert check(stored / "small", tiny.build("sd")).ok


def test_a_stitched_pipeline_stands_for_its_own_denoiser(configs):
    class Stitched:
        members = {"small": tiny.unet_sd("small"), "large": tiny.unet_sd()}  # noqa: RUF012

    assert levels(check(tiny.small("sd"), Stitched()).found).keys() == {"VAE", "text encoder", "scheduler"}


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("unet/config.json", b"{", "is JSON, and this is not"),
        ("unet/config.json", b"\xff\xfe", "cannot be read as JSON"),
        ("unet/config.json", b"[1]", "not list"),
        ("unet/config.json", b"[" * 200_000, "cannot be read as JSON"),
        ("unet/config.json", b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        ("unet/config.json", b" " * (MOST_BYTES + 1), "a configuration has at most"),
        ("unet/config.json", b"{}", "without _class_name"),
        ("unet/config.json", b'{"_class_name": "AutoencoderKL"}', "is a AutoencoderKL; expected a diffusers denoiser"),
        ("unet/config.json", b'{"_class_name": "VQModel\\u001b[2J"}', "is a VQModel?[2J; expected"),
        ("unet/config.json", None, "has no unet/config.json"),
        ("model_index.json", b"{}", "no unet or transformer (it has nothing)"),
        ("model_index.json", b'{"unet": [null, null], "prior": ["a", "B"]}', "(it has prior)"),
        ("scheduler/scheduler_config.json", b"{", "scheduler_config.json is JSON"),
    ],
)
def test_damaged_files_are_named(pair, file, content, said):
    small, large = pair
    path = small / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(HemstitchError, match=r".") as error:
        check(small, large)
    assert said in str(error.value)
    assert str(small) in str(error.value)


def test_what_is_neither_is_told(stored, tmp_path):
    cases = [
        (tmp_path, "neither model_index.json (a pipeline) nor config.json"),
        (tmp_path / "nowhere", "there is no folder"),
        ("", "got an empty name"),
        ("nowhere", "no hub id"),
        (stored / "large" / "model_index.json", "is a file"),
        (stored / "large" / "vae", "expected a diffusers denoiser"),
        (7, "got int"),
        (tiny.build("sd").vae, "is a AutoencoderKL"),
    ]
    for given, said in cases:
        for both in ((given, stored / "large"), (stored / "large", given)):
            with pytest.raises(HemstitchError, match=r".") as error:
                check(*both)
            assert said in str(error.value), given
    with pytest.raises(HemstitchError, match="has no transformer_2"):
        check(stored / "small", stored / "large", subfolder="transformer_2")
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(HemstitchError, match="is not a file"):
        check(tmp_path, stored / "large")


def test_hub_ids_are_fetched_file_by_file(stored, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    asked = []

    def fetch(repo, name):
        asked.append(name)
        if repo == "someone/offline":
            raise LocalEntryNotFoundError("no network")
        if repo == "someone/nothing":
            raise OSError("401: no such repository\nmore")
        path = stored / repo.removeprefix("someone/") / name
        if not path.exists():
            raise EntryNotFoundError(name)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    found = check("someone/small", "someone/large")
    assert found.ok
    assert "same weights" not in finding(found.found, "VAE").small
    assert {name.rpartition(".")[2] for name in asked} == {"json"}
    assert check("someone/small", stored / "large", subfolder="unet").ok
    for repo, said in (("someone/offline", "cannot be asked: no network"), ("someone/nothing", "401")):
        with pytest.raises(HemstitchError, match=said):
            check(repo, "someone/large")
    with pytest.raises(HemstitchError, match="someone/missing holds neither"):
        check("someone/missing", "someone/large")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"hemstitch\[diffusers\]"):
        check("someone/small", "someone/large")


def test_no_value_of_a_file_is_more_than_a_finding(configs):
    """Whatever stands in a configuration, the answer is a table that a terminal can show."""
    values = [None, True, 0, -1, 2**70, 1.5, "", "\x1b[2J\n", "a" * 9000, [], [1] * 900, [[None]], {}, {"a": [1]}]
    draw = random.Random(0)
    keys = sorted({key for config in configs.values() for key in config} | {"quantization_config", "guidance_embeds"})
    for turn in range(600):
        base = configs[draw.choice(list(configs))]
        ours, theirs = ({**base, **{k: draw.choice(values) for k in draw.sample(keys, 8)}} for _ in range(2))
        if turn % 4:
            ours["_class_name"] = theirs["_class_name"] = base["_class_name"]
        found = compare_denoisers(ours, theirs, {"variance_type": draw.choice(values)})
        found += compare_schedulers(
            *({k: draw.choice(values) for k in (*SD, *FLOW, "trained_betas")} for _ in range(2))
        )
        found += compare_autoencoders(*({k: draw.choice(values) for k in (*KL, "latents_std")} for _ in range(2)), None)
        found += compare_text_encoders(
            "text", *({k: draw.choice(values) for k in ("text_config", "d_model")} for _ in range(2))
        )
        shown = str(Findings(tuple(found)))
        assert all(c.isprintable() or c == "\n" for c in shown)
        assert all(len(line) <= 120 for line in shown.splitlines()[: len(found) + 1])


def test_the_table_is_aligned_and_says_a_reason_once(configs):
    found = Findings(
        (
            Finding("ok", "denoiser", "A", "B"),
            Finding("note", "VAE", "none", "known", "not known; look"),
            Finding("note", "scheduler", "none", "known", "not known; look"),
            Finding("refuse", "classes", "x" * 90, "10", "take another"),
        )
    )
    lines = str(found).splitlines()
    assert {line.index(word) for line, word in zip(lines[:4], ["large", "B", "known", "known"], strict=True)} == {63}
    assert lines[4].startswith("no    classes    xxx")
    assert "…  10" in lines[4]
    assert lines[5:] == ["", "no    classes: take another", "", "note  VAE, scheduler: not known; look"]


def test_command(pair, tmp_path, capsys):
    small, large = map(str, pair)
    assert cli.main(["check", small, large]) == 0
    said = capsys.readouterr().out
    assert "UNet2DConditionModel" in said
    assert said.endswith("\n\nThese can be stitched: stitch(pipe, small, fraction=0.4)\n")
    change(pair[0] / "unet" / "config.json", sample_size=99)
    assert cli.main(["check", small, large, "--subfolder", "unet"]) == 0
    assert "with 1 to note" in capsys.readouterr().out
    change(pair[0] / "scheduler" / "scheduler_config.json", prediction_type="sample")
    assert cli.main(["check", small, large]) == 1
    assert "only where processes= converts" in capsys.readouterr().out
    change(pair[0] / "unet" / "config.json", in_channels=9)
    assert cli.main(["check", small, large]) == 1
    assert capsys.readouterr().out.endswith("These cannot be stitched: latent channels, prediction type.\n")
    for arguments in ([small, str(tmp_path)], [small, "nowhere"], [small, large, "--subfolder", "prior"]):
        assert cli.main(["check", *arguments]) == 2
        assert capsys.readouterr().err.startswith("hemstitch: ")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["check", "--help"])
    assert "--subfolder" in capsys.readouterr().out


def test_folders_are_checked_without_diffusers(stored):
    code = "import sys\nsys.modules['diffusers'] = sys.modules['huggingface_hub'] = None\n"
    code += "from hemstitch.bridge.compat import check\nsys.exit(not check(*sys.argv[1:]).ok)"
    folders = [str(stored / name) for name in ("small", "large")]
    assert subprocess.run([sys.executable, "-c", code, *folders], check=False).returncode == 0
