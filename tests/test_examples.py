"""The examples, run as a user runs them, with their tiny random networks."""

import importlib.util
import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

EXAMPLES = Path(__file__).parent.parent / "examples"
FRACTIONS = ("0", "0.5", "1")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """run("sdxl", "--tiny") -> (exit status, output, errors); pictures go to tmp_path / "out"."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def call(script, *arguments):
        path = EXAMPLES / f"{script}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments), "--out", str(tmp_path / "out")])
        status = 0
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as ended:
            status = ended.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def noise(path, side=40, seed=0):
    import torch

    pixels = torch.randint(256, (side, side, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return path


SCRIPTS = [
    "stable_diffusion",
    "sdxl",
    "sdxl --dtype bfloat16",
    "sdxl --lazy --keep active",
    "sdxl --offload",
    "sdxl_controlnet",
    "sdxl_controlnet --residuals drop",
    "sdxl_controlnet --small-controlnet tiny",
    "sdxl_t2i_adapter",
    "sdxl_t2i_adapter --residuals drop",
    "lcm",
    "lcm --lazy",
    "ldm",
    "dit --classes 1 2 3",
    "pixart",
    "pixart --sigma",
    "sd3",
    "flux",
    "wan",
    "wan --two",
]


@pytest.mark.parametrize("command", SCRIPTS)
def test_each_script_writes_one_picture_for_each_fraction(run, tmp_path, command):
    script, *arguments = command.split()
    status, out, err = run(script, "--tiny", *arguments, "--steps", 4, "--fraction", *FRACTIONS)
    assert status == 0, err
    suffix = "webp" if script == "wan" else "png"
    pictures = [tmp_path / "out" / f"{script}-{fraction}.{suffix}" for fraction in FRACTIONS]
    assert set((tmp_path / "out").iterdir()) == set(pictures)
    assert [line.split()[-1] for line in out.splitlines()] == [str(path) for path in pictures]
    pixels = [Image.open(path).convert("RGB").tobytes() for path in pictures]
    assert len(set(pixels)) == len(FRACTIONS), "the large, the stitched and the small model draw different pictures"


def test_wan_writes_its_frames_and_dit_its_classes_in_a_row(run, tmp_path):
    assert run("wan", "--tiny", "--steps", 2)[0] == 0
    with Image.open(tmp_path / "out" / "wan-0.4.webp") as video:
        assert (video.n_frames, video.size) == (5, (32, 32))
    assert run("dit", "--tiny", "--steps", 2, "--classes", 1, 2, 3)[0] == 0
    height = Image.open(tmp_path / "out" / "dit-0.4.png").height
    assert Image.open(tmp_path / "out" / "dit-0.4.png").width == 3 * height


@pytest.mark.parametrize("mask", [False, True])
def test_stable_diffusion_begins_from_a_picture(run, tmp_path, mask):
    """The picture matters, and so does the mask."""
    given = ["--init-image", noise(tmp_path / "in.png"), "--strength", 0.5]
    given += ["--mask", noise(tmp_path / "mask.png", seed=1)] if mask else []
    assert run("stable_diffusion", "--tiny", "--steps", 4, *given)[0] == 0
    with_picture = (tmp_path / "out" / "stable_diffusion-0.4.png").read_bytes()
    assert run("stable_diffusion", "--tiny", "--steps", 4)[0] == 0
    assert (tmp_path / "out" / "stable_diffusion-0.4.png").read_bytes() != with_picture


def test_lora_goes_to_both_members(run, tmp_path):
    pytest.importorskip("peft")
    status, _, err = run("lcm", "--tiny", "--lora", "--fraction", *FRACTIONS)
    assert status == 0, err
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_lora_without_peft_says_what_to_install(run, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "peft" else find_spec(name, *more)
    )
    status, _, err = run("lcm", "--tiny", "--lora")
    assert status == 2
    assert err.splitlines()[-1] == "lcm: --lora loads adapters with peft, which is not installed: pip install peft"


REFUSED = {
    "ldm": "--small is needed: we know of no published smaller U-Net",
    "dit": "--small is needed: we know of no small DiT published as a diffusers folder",
    "pixart": "--small is needed: we know of no published PixArt transformer",
    "sdxl_controlnet": "--image is needed: the path of a picture",
    "sdxl_t2i_adapter": "--image is needed",
    "stable_diffusion --tiny --mask mask.png": "--init-image",
    "stable_diffusion --tiny --init-image nowhere.png": "nowhere.png",
    "sdxl --tiny --fraction 1.5": "1.5",
    "stable_diffusion --large nowhere/at/all": "nowhere/at/all",
}


@pytest.mark.parametrize("command", REFUSED)
def test_bad_input_is_refused_in_a_sentence(run, command):
    script, *arguments = command.split()
    status, _, err = run(script, *arguments)
    assert status == 2
    assert err.splitlines()[-1].startswith(f"{script}: ")
    assert REFUSED[command] in err
    assert "Traceback" not in err


@pytest.mark.parametrize("how", [[], ["--lazy"]])
def test_models_open_from_folders(run, tmp_path, how):
    """The way of a real model: a pipeline's folder, and a denoiser alone or within a pipeline."""
    import tiny

    pipe = tiny.build("sd")
    pipe.save_pretrained(tmp_path / "large")
    tiny.small("sd").save_pretrained(tmp_path / "small")
    pipe.unet = tiny.small("sd")
    pipe.save_pretrained(tmp_path / "whole")
    drawn = []
    for small in ("small", "whole"):
        given = ("--large", tmp_path / "large", "--small", tmp_path / small, *how)
        status, _, err = run("stable_diffusion", *given, "--steps", 3, "--device", "cpu")
        assert status == 0, err
        drawn.append((tmp_path / "out" / "stable_diffusion-0.4.png").read_bytes())
    assert drawn[0] == drawn[1]


def test_a_converted_dit_takes_the_first_steps(run, tmp_path):
    """hemstitch's own network, by `hemstitch convert … --to diffusers`, in diffusers' DiTPipeline."""
    import tiny

    from hemstitch import weights
    from hemstitch.denoiser import NetDenoiser, Spec
    from hemstitch.models import NetConfig, build
    from hemstitch.process import Process

    sizes = {"input_size": 8, "channels": 4, "patch": 2, "width": 16, "depth": 1, "heads": 2, "num_classes": 1000}
    net = build(NetConfig(family="dit", **sizes))
    weights.save(
        NetDenoiser(net, Process("linear", "eps", learned_variance=True), Spec(4, 8, 1000)), tmp_path / "s.safetensors"
    )
    weights.convert(tmp_path / "s.safetensors", tmp_path / "dit-s", "diffusers")
    tiny.build("dit").save_pretrained(tmp_path / "large")
    given = ("--large", tmp_path / "large", "--small", tmp_path / "dit-s", "--device", "cpu")
    status, _, err = run("dit", *given, "--steps", 4, "--fraction", *FRACTIONS)
    assert status == 0, err
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_fraction_row_of_tiny_models_with_clip(run, tmp_path):
    status, _, err = run(
        "fraction_row", "--tiny", "--clip", "tiny", "--steps", 4, "--fraction", *FRACTIONS, "--cell", 60
    )
    assert status == 0, err
    said = json.loads((tmp_path / "out" / "fraction_row.json").read_text())
    assert said["fractions"] == [0.0, 0.5, 1.0]
    assert said["small_steps"] == [0, 2, 4]
    assert said["provenance"]["device"].startswith("CPU")
    assert [row["prompt"] for row in said["rows"]] == ["a red cat", "two dogs"]
    for row in said["rows"]:
        assert all(seconds > 0 for seconds in row["seconds"])
        assert all(0 <= score <= 100 for score in row["clip"])
    scores = [row["clip"] for row in said["rows"]]
    assert said["mean_clip"] == pytest.approx([sum(pair) / 2 for pair in zip(*scores, strict=True)], abs=1e-3)
    width, height = Image.open(tmp_path / "out" / "fraction_row.png").size
    assert width > 3 * 60
    assert height > 2 * 60


@pytest.mark.parametrize("family", ["sdxl", "flux", "pixart_sigma"])
def test_fraction_row_stitches_any_family(monkeypatch, family):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import fraction_row

    args = fraction_row.arguments(["--tiny", "--steps", "2", "--fraction", "0", "1", "--prompts", "a cat"])
    args.family = family
    grid, said = fraction_row.measured(fraction_row.opened(args), args)
    assert said["small_steps"] == [0, 2]
    assert grid[0][0].tobytes() != grid[0][1].tobytes()


def test_prompts_are_wrapped_at_words(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from fraction_row import wrapped
    from PIL import ImageFont

    font = ImageFont.load_default(16)
    lines = wrapped("an astronaut riding a horse through an unbelievablylongforest", font, 120).splitlines()
    assert " ".join(lines) == "an astronaut riding a horse through an unbelievablylongforest"
    assert all(font.getlength(line) <= 120 for line in lines[:-1])


def test_a_pair_is_trained_and_drawn(run, tmp_path, monkeypatch):
    """With hardly any training: the path from digits to a row of pictures."""
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import train_pair

    said = train_pair.train(tmp_path / "pair", updates=2, batch=4, data=train_pair.Inked(20))
    assert said["large"]["parameters"] > 3 * said["small"]["parameters"]
    status, _, err = run("fraction_row", "--digits", tmp_path / "pair", "--steps", 2, "--fraction", *FRACTIONS)
    assert status == 0, err
    assert json.loads((tmp_path / "out" / "fraction_row.json").read_text())["pair"]["updates"] == 2


def test_words_of_prompts_are_tokens(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import train_pair

    tokenizer = train_pair.new_pipeline().tokenizer
    for prompt in train_pair.PROMPTS:
        tokens = tokenizer.tokenize(prompt)
        assert [token.removesuffix("</w>") for token in tokens] == prompt.split()


def test_every_script_is_listed(monkeypatch):
    readme = (EXAMPLES / "README.md").read_text()
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert {name for name in scripts if f"{name}" not in readme} == set()
