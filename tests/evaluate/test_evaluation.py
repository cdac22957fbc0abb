"""Sets beside each other: figures with intervals, what is checked before features are extracted, what is reported."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hemstitch import HemstitchError
from hemstitch.data import Digits
from hemstitch.evaluate.classifier import train_classifier
from hemstitch.evaluate.evaluation import Measuring, check, evaluate
from hemstitch.evaluate.extractors import SmallClassifier, wrapped
from hemstitch.evaluate.features import INDEX, MappedRows, extracted, moments_of, stored
from hemstitch.evaluate.frechet import Moments, frechet_distance
from hemstitch.evaluate.images import open_images
from hemstitch.evaluate.metrics import METRICS, chosen, title
from hemstitch.evaluate.reference import open_reference, open_source
from hemstitch.evaluate.table import cell, table

SIDE = 8


def project(images):
    """Features that tell pictures apart and cost nothing."""
    weights = torch.randn(3 * SIDE * SIDE, 24, generator=torch.Generator().manual_seed(0))
    pool = (images.float().flatten(1) / 255) @ weights
    return {"pool": pool, "spatial": pool[:, :5] + 1, "logits": pool[:, :6]}


@pytest.fixture
def extractor():
    return wrapped(project, "projection", "1", "abc", ("pool", "spatial", "logits"))


def pictures(folder, count=40, seed=0, bias=0, side=SIDE):
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(seed).integers(0, 200, (count, side, side, 3)) + bias
    for i, image in enumerate(drawn.astype(np.uint8)):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return str(folder)


def measured(sets, reference, extractor, metrics=("fid", "sfid", "is", "prc", "dc", "kid"), **options):
    opened = {name: [open_source(w) for w in where] for name, where in sets.items()}
    reference = None if reference is None else open_reference(reference)
    return evaluate(opened, reference, list(metrics), Measuring(extractor, {}, **options))


def test_figures_are_those_of_the_features(tmp_path, extractor):
    a, b, r = (pictures(tmp_path / n, seed=s, bias=bias) for n, s, bias in (("a", 1, 0), ("b", 2, 40), ("r", 3, 0)))
    report = measured({"a": [a], "b": [b]}, r, extractor)
    features = {where: project(torch.cat(list(open_images(where).batches(7)))) for where in (a, b, r)}
    for row, where in zip(report.rows, (a, b), strict=True):
        for figure, output in (("fid", "pool"), ("sfid", "spatial")):
            expected = frechet_distance(Moments.of(features[where][output]), Moments.of(features[r][output]))
            assert row.scores[figure].value == pytest.approx(expected, rel=1e-6)
    assert set(report.rows[0].scores) == {
        f for n in ("fid", "sfid", "is", "prc", "dc", "kid") for f in METRICS[n].figures
    }
    assert report.against_first(report.rows[1])["fid"].said == "higher"
    text = table(report)
    assert "b is worse than a in" in text
    assert "FD (projection)" in text
    assert "FID" not in text
    assert "40 images" in text


def test_a_difference_inside_the_interval_is_no_difference(tmp_path, extractor):
    a, b, r = (pictures(tmp_path / n, seed=s, count=200) for n, s in (("a", 1), ("b", 2), ("r", 3)))
    report = measured({"a": [a], "b": [b]}, r, extractor)
    assert {c.said for c in report.against_first(report.rows[1]).values()} == {"no difference"}
    assert "b and a: no difference in FD (projection)" in table(report)


def test_the_report_says_what_was_measured(tmp_path, extractor):
    a, r = pictures(tmp_path / "a", seed=1), pictures(tmp_path / "r", seed=3)
    report = measured({"a": [a], "again": [a]}, r, extractor, cache=tmp_path / "cache")
    data = json.loads(report.to_json())
    first, second = data["sets"]
    assert first["content"] == second["content"]
    assert data["reference"]["images"] == 40
    assert data["reference"]["hash"] == {"projection": report.reference["hash"]["projection"]}
    assert data["extractors"]["fid"] == "projection abc (1)"
    assert data["provenance"]["device"].startswith("CPU")
    figure = second["figures"]["fid"]
    assert figure["low"] < figure["value"] < figure["high"]
    assert figure["against_first"] == {"gap": 0.0, "half_width": 0.0, "said": "no difference"}
    # the same pictures in another file are the same reference
    np.savez(
        tmp_path / "r.npz", arr_0=np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "r").iterdir())])
    )
    other = measured({"a": [a]}, str(tmp_path / "r.npz"), extractor)
    assert other.reference["hash"] == report.reference["hash"]
    assert other.rows[0].scores["fid"].value == report.rows[0].scores["fid"].value


def test_repeated_seeds_have_the_spread_of_their_values(tmp_path, extractor):
    seeds = [pictures(tmp_path / f"s{i}", seed=10 + i) for i in range(3)]
    r = pictures(tmp_path / "r", seed=3)
    alone = [measured({"a": [s]}, r, extractor, ["fid"]).rows[0].scores["fid"].value for s in seeds]
    score = measured({"a": seeds}, r, extractor, ["fid"]).rows[0].scores["fid"]
    assert score.value == pytest.approx(np.mean(alone))
    low, high = score.interval
    half = 4.302653 * np.std(alone, ddof=1) / np.sqrt(3)  # Student's, two degrees of freedom
    assert high - low == pytest.approx(2 * half, rel=1e-5)


def test_features_are_kept_and_found_again(tmp_path, extractor):
    a, r = pictures(tmp_path / "a", seed=1), pictures(tmp_path / "r", seed=3)
    first = measured({"a": [a]}, r, extractor, cache=tmp_path / "cache")

    def never(images):
        raise AssertionError("extracted again")

    again = wrapped(never, "projection", "1", "abc", ("pool", "spatial", "logits"))
    second = measured({"a": [a]}, r, again, cache=tmp_path / "cache")
    assert second.rows[0].scores["fid"].value == first.rows[0].scores["fid"].value
    # a cached folder is itself a reference, for its extractor only
    kept = next(p.parent for p in (tmp_path / "cache").glob(f"*/{INDEX}"))
    third = measured({"a": [a]}, str(kept), extractor, ["fid"])
    assert third.rows[0].scores["fid"].value >= 0
    other = wrapped(project, "projection", "1", "other", ("pool", "spatial", "logits"))
    with pytest.raises(HemstitchError, match=r"holds features of projection abc \(1\), and projection other"):
        measured({"a": [a]}, str(kept), other, ["fid"])


def test_published_statistics_are_the_reference(tmp_path, extractor):
    a, r = pictures(tmp_path / "a", seed=1), pictures(tmp_path / "r", seed=3)
    features = project(torch.cat(list(open_images(r).batches(16))))
    pool, spatial = Moments.of(features["pool"]), Moments.of(features["spatial"])
    statistics = {"mu": pool.mean, "sigma": pool.covariance, "mu_s": spatial.mean, "sigma_s": spatial.covariance}
    np.savez(tmp_path / "ref.npz", **statistics)
    report = measured({"a": [a]}, str(tmp_path / "ref.npz"), extractor, ["fid", "sfid", "is"])
    expected = measured({"a": [a]}, r, extractor, ["fid", "sfid", "is"])
    for name, score in report.rows[0].scores.items():
        assert score.value == pytest.approx(expected.rows[0].scores[name].value, rel=1e-5)
    assert report.reference["images"] is None
    with pytest.raises(HemstitchError, match="prc needs the reference's pictures, and ref holds statistics alone"):
        measured({"a": [a]}, str(tmp_path / "ref.npz"), extractor, ["prc"])
    stacked = np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "r").iterdir())])
    np.savez(tmp_path / "both.npz", arr_0=stacked, **statistics)
    both = measured({"a": [a]}, str(tmp_path / "both.npz"), extractor, ["fid", "prc"])
    assert both.rows[0].scores["precision"].value == pytest.approx(
        measured({"a": [a]}, r, extractor, ["prc"]).rows[0].scores["precision"].value
    )


@pytest.mark.parametrize(
    ("arrays", "metrics", "said"),
    [
        (
            {"mu": np.zeros(2048), "sigma": np.eye(2048)},
            ["fid"],
            "statistics of 2048 pool features, and projection gives 24",
        ),
        ({"mu": np.zeros(24), "sigma": np.eye(24)}, ["sfid"], "no statistics of spatial features"),
        ({"mu": np.zeros(24), "sigma": np.eye(23)}, ["fid"], r"mean \(F,\) and a covariance"),
        ({"mu": np.zeros(24)}, ["fid"], "without its other half"),
        ({"mu": np.zeros(24, int), "sigma": np.eye(24)}, ["fid"], "floating-point"),
        ({"mu": np.full(24, np.nan), "sigma": np.eye(24)}, ["fid"], "NaN or infinity"),
        ({"mu": np.array([{}], object), "sigma": np.eye(24)}, ["fid"], "without objects"),
    ],
)
def test_bad_statistics(tmp_path, extractor, arrays, metrics, said):
    np.savez(tmp_path / "ref.npz", **arrays)
    a = pictures(tmp_path / "a", count=2)
    with pytest.raises(HemstitchError, match=said):
        measured({"a": [a]}, str(tmp_path / "ref.npz"), extractor, metrics)


def test_all_is_checked_before_anything_is_extracted(tmp_path):
    def never(images):
        raise AssertionError("extracted before it was checked")

    extractor = wrapped(never, "never", outputs=("pool",))
    a, r, big = pictures(tmp_path / "a"), pictures(tmp_path / "r"), pictures(tmp_path / "big", side=16)
    for metrics, reference, said in (
        (["fid"], big, r"different sizes are not compared: \S+a 8 x 8, \S+big 16 x 16"),
        (["is"], r, "is needs logits features, which never does not give"),
        (["fid"], None, "fid compares with a reference: give one"),
        (["fd_dinov2"], r, "give its extractor, dinov2"),
        (["fod"], r, "metrics are some of fid, sfid, is"),
        ([], r, "not none"),
    ):
        with pytest.raises(HemstitchError, match=said):
            measured({"a": [a]}, reference, extractor, metrics)
    with pytest.raises(HemstitchError, match="nothing to evaluate"):
        check({}, None, ["fid"], Measuring(extractor, {}))


def test_not_finite_features_stop(tmp_path):
    broken = wrapped(lambda images: torch.full((len(images), 3), float("nan")), "broken")
    with pytest.raises(HemstitchError, match="not finite"):
        measured({"a": [pictures(tmp_path / "a")]}, pictures(tmp_path / "r"), broken, ["fid"])


def test_rows_in_several_files_read_as_one(tmp_path, extractor):
    images = open_images(pictures(tmp_path / "a", count=30))
    steps = list(extracted(images, extractor, tmp_path / "out", batch=4))
    features = steps[-1].features
    assert [s.progress.done for s in steps][:3] == [4, 8, 12]
    whole = project(torch.cat(list(images.batches(30))))["pool"].numpy()
    parts = [whole[:7], whole[7:7], whole[7:20], whole[20:]]
    rows = MappedRows(parts)
    assert (len(rows), rows.shape) == (30, (30, 24))
    for start, stop in ((0, 30), (5, 9), (7, 20), (19, 21), (29, 99), (9, 9)):
        assert np.array_equal(rows[start:stop], whole[start:stop])
    index = np.array([29, 0, 7, 7, 6, 19])
    assert np.array_equal(rows[index], whole[index])
    assert np.allclose(features.rows["pool"][0:30], whole, atol=1e-5)
    assert stored(tmp_path / "out", "a").index == features.index
    found = moments_of(images, extractor)
    assert np.allclose(found.covariance, features.moments("pool").covariance, rtol=1e-4, atol=1e-4)  # of kernels
    (tmp_path / "out" / "00000.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(HemstitchError, match=r"00000\.safetensors"):
        stored(tmp_path / "out", "a")


def test_accuracy_is_a_classifiers(tmp_path):
    classifier = train_classifier(Digits("train"), Digits("test"), steps=30)
    sources = {"digits": [open_source("digits:test")]}
    report = evaluate(sources, None, ["accuracy"], Measuring(SmallClassifier(classifier), {}))
    assert report.rows[0].scores["accuracy"].value == pytest.approx(classifier.accuracy, abs=0.01)
    unlabelled = {"a": [open_source(pictures(tmp_path / "a"))]}
    with pytest.raises(HemstitchError, match="has no labels: leave accuracy out"):
        evaluate(unlabelled, None, ["accuracy"], Measuring(SmallClassifier(classifier), {}))


def test_names_of_figures_are_honest():
    assert title("fid", "inception") == "FID"
    assert title("fid", "classifier") == "FD (classifier)"
    assert list(chosen(["prc", "fid"])) == ["fid", "prc"]


def test_digits_that_the_interval_leaves_standing():
    from hemstitch.evaluate.score import Score

    assert cell(Score(12.3456, np.array([12.0, 12.4, 12.8]))) == "12.35 ± 0.78"
    assert cell(Score(0.5, np.array([0.5, 0.5]))) == "0.5000 ± 0.0000"


def test_kept_features_are_cut_to_the_count_and_their_makers_differ(tmp_path, extractor):
    a, r = pictures(tmp_path / "a", seed=1), pictures(tmp_path / "r", seed=3)
    cache = tmp_path / "cache"
    part = measured({"a": [a]}, r, extractor, ["fid"], count=20, cache=cache)
    measured({"a": [a]}, r, extractor, ["fid"], cache=cache)
    whole = next(p.parent for p in cache.glob(f"*-40/{INDEX}") if "40" in p.parent.name)
    kept = open_source(str(whole))
    cut = evaluate({"a": [kept]}, open_reference(r), ["fid"], Measuring(extractor, {}, count=20))
    assert cut.rows[0].counts == (20,)
    assert part.rows[0].counts == (20,)
    newer = wrapped(project, "projection", "2", "abc", ("pool", "spatial", "logits"))
    assert measured({"a": [a]}, r, newer, ["fid"], cache=cache).extractors["fid"].version == "2"
    nameless = wrapped(project, "projection", outputs=("pool", "spatial", "logits"))
    with pytest.raises(HemstitchError, match="has no hash to tell its weights by"):
        measured({"a": [a]}, r, nameless, ["fid"], cache=cache)


def test_the_public_names_of_evaluation_resolve():
    import hemstitch.evaluate as package

    for name in package.__all__:
        assert (getattr(package, name).__doc__ or "").strip(), name
    assert not hasattr(package, "fidd")


def test_sets_of_one_name_are_compared_by_their_sizes(tmp_path, extractor):
    """`samples` is what most folders of samples are called."""
    small, big = pictures(tmp_path / "a" / "samples"), pictures(tmp_path / "b" / "samples", side=16)
    sets = {"a": [replace(open_source(small), name="samples")]}
    with pytest.raises(HemstitchError, match="different sizes are not compared: samples 8 x 8, samples 16 x 16"):
        evaluate(sets, replace(open_reference(big), name="samples"), ["fid"], Measuring(extractor))


def test_repeated_seeds_are_of_one_model_and_differ(tmp_path, extractor):
    a, r = pictures(tmp_path / "a", seed=1), open_reference(pictures(tmp_path / "r", seed=3))
    source = open_source(a)
    with pytest.raises(HemstitchError, match="two of the sets of a are the same samples"):
        evaluate({"a": [source, source]}, r, ["fid"], Measuring(extractor))
    told = {"model": "x", "sampler": "DDIM", "steps": 50, "guidance": "1", "content": "c"}
    one = replace(source, told=told)
    for change, said in (
        ({"model": "y"}, "repeated seeds of a are of one model: their model is x and y"),
        ({"guidance": "2"}, "their guidance is 1 and 2"),
        ({}, "the same samples"),
    ):
        with pytest.raises(HemstitchError, match=said):
            evaluate({"a": [one, replace(source, told={**told, **change})]}, r, ["fid"], Measuring(extractor))


def test_a_cache_that_does_not_fit_is_made_again(tmp_path, extractor):
    a, r = pictures(tmp_path / "a", seed=1), pictures(tmp_path / "r", seed=3)
    cache = tmp_path / "cache"
    first = measured({"a": [a]}, r, extractor, ["fid"], cache=cache).rows[0].scores["fid"].value
    for harm in (
        lambda folder: (folder / "00000.safetensors").write_bytes(b"x" * 100),
        lambda folder: (folder / INDEX).write_text("{"),
        lambda folder: (folder / "00000.safetensors").unlink(),
        lambda folder: [(folder / INDEX).unlink(), (folder / "00001.safetensors").write_bytes(b"stale")],
    ):
        for folder in cache.iterdir():
            harm(folder)
        assert measured({"a": [a]}, r, extractor, ["fid"], cache=cache).rows[0].scores["fid"].value == first
        assert all(len(list(folder.iterdir())) == 2 for folder in cache.iterdir())
    kept = next(cache.iterdir())
    part = kept / "00000.safetensors"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    with pytest.raises(HemstitchError, match=r"00000\.safetensors is not what was written: remove"):
        open_reference(str(kept))


def test_only_the_extractors_that_are_used_are_asked_for(tmp_path):
    clip = wrapped(lambda images: images.float().mean((2, 3)) + 1, "clip", "1", "abc")
    a, r = pictures(tmp_path / "a", seed=1), pictures(tmp_path / "r", seed=3)
    report = evaluate({"a": open_source(a)}, open_reference(r), ["cmmd"], Measuring(None, {"clip": clip}))
    assert report.extractors["cmmd"].name == "clip"
    with pytest.raises(HemstitchError, match="give its extractor, inception or another"):
        evaluate({"a": open_source(a)}, open_reference(r), ["fid"], Measuring(None, {"clip": clip}))


@pytest.mark.parametrize(
    ("options", "metrics", "said"),
    [
        ({"resamples": 1}, ["fid"], "at least 2 resamples"),
        ({"batch": 0}, ["fid"], "at least 1 at a time"),
        ({"count": 1}, ["fid"], "at least 2"),
        ({"count": 5}, ["prc"], "prc needs at least 6 pictures"),
    ],
)
def test_numbers_that_do_not_do(tmp_path, extractor, options, metrics, said):
    a, r = pictures(tmp_path / "a", seed=1), pictures(tmp_path / "r", seed=3)
    with pytest.raises(HemstitchError, match=said):
        measured({"a": [a]}, r, extractor, metrics, **options)


def test_a_broken_picture_is_found_before_anything_is_extracted(tmp_path):
    def never(images):
        raise AssertionError("extracted before all was looked through")

    a, r = pictures(tmp_path / "a", seed=1), pictures(tmp_path / "r", seed=3)
    path = tmp_path / "r" / "030.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(HemstitchError, match=r"030\.png"):
        measured({"a": [a]}, r, wrapped(never, "never", "1", "abc"), ["fid"])


def test_classes_of_the_classifier_are_those_of_the_pictures(tmp_path):
    classifier = SmallClassifier(train_classifier(Digits("train"), Digits("test"), steps=30))
    for i, image in enumerate(np.random.default_rng(0).integers(0, 255, (6, 8, 8, 1), np.uint8)):
        folder = tmp_path / "few" / ["cat", "dog"][i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.repeat(3, -1)).save(folder / f"{i}.png")
    with pytest.raises(HemstitchError, match="has 2 classes, and the classifier 10: leave accuracy out"):
        evaluate({"few": open_source(str(tmp_path / "few"))}, None, ["accuracy"], Measuring(classifier))


def test_sets_of_unequal_size_get_no_verdict_where_size_matters(tmp_path, extractor):
    a, b, r = (pictures(tmp_path / n, seed=s, count=c) for n, s, c in (("a", 1, 60), ("b", 2, 40), ("r", 3, 60)))
    report = measured({"a": [a], "b": [b]}, r, extractor, ["fid", "kid"])
    said = report.against_first(report.rows[1])
    assert (said["fid"].said, said["kid"].said) == ("no verdict", "no difference")
    assert "no verdict on FD (projection), which depend on how many images there are" in table(report)
