"""Invariance: a draw depends on its seed, index and stream alone; the generator matches its authors' vectors."""

import numpy as np
import pytest
import torch

from hemstitch import HemstitchError, seeds


# Known-answer vectors of Philox-4x32-10, from the Random123 distribution (kat_vectors).
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    words = seeds.philox(tuple(map(torch.tensor, key)), tuple(map(torch.tensor, counter)))
    assert [int(w) for w in words] == expected


def test_a_row_is_the_same_in_any_batch():
    keys = seeds.keys([(7, 0), (7, 1), (8, 0), 9])
    together = seeds.normal(keys, 3, (4, 5, 5))
    for i in range(4):
        assert torch.equal(seeds.normal(keys[i : i + 1], 3, (4, 5, 5))[0], together[i])
    assert len({tuple(row.flatten().tolist()) for row in together}) == 4


def test_streams_may_differ_per_row():
    keys = seeds.keys([1, 2])
    mixed = seeds.normal(keys, torch.tensor([4, 9]), (3,))
    assert torch.equal(mixed[0], seeds.normal(keys, 4, (3,))[0])
    assert torch.equal(mixed[1], seeds.normal(keys, 9, (3,))[1])


def test_normals_are_normal():
    z = seeds.normal(seeds.keys([(0, i) for i in range(100)]), 0, (2000,)).double()
    assert abs(float(z.mean())) < 4 / z.numel() ** 0.5
    assert abs(float(z.var()) - 1) < 4 * (2 / z.numel()) ** 0.5
    assert abs(float((z**4).mean()) - 3) < 4 * (96 / z.numel()) ** 0.5
    correlation = np.corrcoef(z[:50].numpy())
    assert np.abs(correlation - np.eye(50)).max() < 5 / 2000**0.5


def test_integers_and_uniforms_cover_their_range():
    keys = seeds.keys([(0, i) for i in range(20_000)])
    counts = torch.bincount(seeds.integers(keys, 1, 10), minlength=10)
    assert counts.min() > 1800
    assert counts.max() < 2200
    u = seeds.uniform(keys, 2)
    assert 0 <= float(u.min()) < 1e-3
    assert 1 - 1e-3 < float(u.max()) < 1


def test_numpy_integers_are_seeds():
    assert seeds.keys(np.arange(3)).tolist() == [[0, 0], [1, 0], [2, 0]]


def test_bad_seeds_are_refused():
    with pytest.raises(HemstitchError, match=r"lie in 0\.\."):
        seeds.keys(torch.tensor([[0, -1]]))
    with pytest.raises(HemstitchError, match=r"lie in 0\.\."):
        seeds.keys([-1])
    with pytest.raises(HemstitchError, match="seed and index"):
        seeds.keys(torch.zeros(3, dtype=torch.int64))
