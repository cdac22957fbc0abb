"""Samples as files: normalised ones are restored before they are pictures, and decoded as their space says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hemstitch import NetDenoiser, Process, Spec, generate
from hemstitch.autoencoder import decoder, open_autoencoder
from hemstitch.bulk import write
from hemstitch.models import NetConfig, build


def denoiser(channels, spec):
    net = build(NetConfig(input_size=8, channels=channels, width=16, depth=1, heads=2, num_classes=0, null_label=False))
    return NetDenoiser(net.eval(), Process(learned_variance=True), spec)


def test_pictures_of_normalised_pixels_are_restored(tmp_path, monkeypatch):
    model = denoiser(1, Spec(1, 8, mean=(0.5,), std=(0.1,)))
    monkeypatch.setattr(write, "generate", lambda *a, **k: torch.zeros(1, 1, 8, 8))
    list(write.write_samples(model, tmp_path / "out", count=1, batch=1))
    assert np.unique(np.asarray(Image.open(tmp_path / "out" / "000000.png"))).tolist() == [191]
    assert generate is not write.generate


@pytest.mark.parametrize("space", ["latents:{}:raw", ""])
def test_raw_latents_are_not_scaled_twice(tmp_path, space):
    """A cache of raw latents says so by having no mean; samples of unknown origin get the published scaling undone."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, scaling_factor=0.5).save_pretrained(tmp_path / "vae")
    vae = open_autoencoder(tmp_path / "vae")
    spec = replace(Spec(4, 8), space=space.format(vae.fingerprint))
    samples = torch.randn(1, 4, 8, 8)
    expected = vae.decode(samples if space else samples / 0.5)
    assert torch.equal(decoder(tmp_path / "vae", spec)(samples), expected)
