"""Pictures: what is drawn, where labels stand, what is refused. How they look was looked at."""

import itertools
import math
import sys

import pytest

from hemstitch import HemstitchError, Plan
from hemstitch.errors import MissingExtraError
from hemstitch.stitch.search.picture import Dot, frontier_figure, frontier_png, plans_figure, plans_png

pytest.importorskip("matplotlib")

DOTS = [
    Dot("largest", "large", 1.0, 9.2, 0.4),
    Dot("cheapest", "small", 0.1, 33.5, 0.6),
    *(
        Dot("fraction", f"{i / 10:g}", 1 - 0.09 * i, distance, 0.4)
        for i, distance in enumerate([9.17, 8.99, 9.03, 8.95, 10.06, 12.46, 18.04, 25.44, 30.11], 1)
    ),
    Dot("fewer steps", "20 steps", 0.2, 13.1, 0.4),
    Dot("fewer steps", "50 steps", 0.5, 9.9, 0.4),
    Dot("found", "small ×38 → large ×40", 0.46, 9.3, 0.3),
    Dot("found", "small ×52 → large ×40", 0.47, 9.25, 0.3),
    Dot("other", "interleaved", 0.55, 19.02),
]
FRONTIER = [(0.37, 12.0), (0.1, 32.0), (0.64, 8.8)]


@pytest.fixture(scope="module")
def figure():
    return frontier_figure(DOTS, FRONTIER, (0.5, 0.65), "a title", "Fréchet distance")


def lines(figure, **wanted):
    """(x, y) of the lines of a look."""
    return [
        [*zip(*line.get_data(), strict=True)]
        for line in figure.axes[0].lines
        if all(getattr(line, f"get_{name}")() == value for name, value in wanted.items())
    ]


def test_pictures_are_png():
    assert frontier_png(DOTS[:2], [], 0.5, "", "distance").startswith(b"\x89PNG\r\n\x1a\n")
    assert plans_png([("one", Plan.explicit(["a", "b"]))], ["a", "b"]).startswith(b"\x89PNG\r\n\x1a\n")


def test_every_kind_is_drawn_once_with_its_bars(figure):
    (axes,) = figure.axes
    assert len(axes.containers) == len({p.kind for p in DOTS})
    drawn = [point for bars in axes.containers for point in zip(*bars.lines[0].get_data(), strict=True)]
    assert sorted(drawn) == sorted((p.share, p.distance) for p in DOTS)
    halves = [
        (segment[1][1] - segment[0][1]) / 2
        for bars in axes.containers
        for collection in bars.lines[2]
        for segment in collection.get_segments()
    ]
    assert sorted(halves) == pytest.approx(sorted(p.half_width for p in DOTS))


def test_markers_differ_where_colours_may_not(figure):
    markers = [bars.lines[0].get_marker() for bars in figure.axes[0].containers]
    assert len(set(markers)) == len(markers)


def test_the_frontier_is_a_staircase_to_the_right(figure):
    """The best of a smaller budget holds until the next share."""
    steps = [(0.1, 32.0), (0.37, 32.0), (0.37, 12.0), (0.64, 12.0), (0.64, 8.8), (1.0, 8.8)]
    assert lines(figure, label="predicted frontier") == [steps]


def test_fewer_steps_end_at_the_largest(figure):
    assert [(0.5, 9.9), (1.0, 9.2)] in lines(figure, linestyle="--")


@pytest.mark.parametrize("budget", [0.5, (0.5,), (0.5, 0.65, 0.8), 7.0, ()])
def test_each_budget_is_a_line_with_its_name(budget):
    drawn = frontier_figure(DOTS[:1], [], budget, "", "distance")
    expected = [budget] if isinstance(budget, float) else list(budget)
    verticals = [line for line in lines(drawn) if [y for _, y in line] == [0, 1]]
    assert [x for (x, _), _ in verticals] == expected
    assert drawn.axes[0].get_xlim()[1] > max([1.0, *expected])
    assert [t.get_text() for t in drawn.axes[0].texts] == [f"budget {at:g}" for at in expected]


def test_axes_say_what_they_show(figure):
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "a title"
    assert axes.get_ylabel() == "Fréchet distance (lower is better)"
    assert "share of the largest member's" in axes.get_xlabel()
    assert axes.get_xlim()[0] == 0
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(legend) == len({p.kind for p in DOTS}) + 1


@pytest.mark.parametrize(
    ("distances", "frontier", "scale"),
    [
        ([1.0, 4.0], [], "linear"),
        ([1.0, 4.1], [], "log"),
        ([1.0, 2.0], [(0.1, 4.1)], "log"),
        ([0.0, 4.1], [], "linear"),
        ([-1.0, 4.1], [], "linear"),
    ],
)
def test_a_wide_range_of_positive_distances_is_logarithmic(distances, frontier, scale):
    dots = [Dot("other", "", 0.1 * i, d, 2.0) for i, d in enumerate(distances)]
    (axes,) = frontier_figure(dots, frontier, 0.5, "", "distance").axes
    assert axes.get_yscale() == scale
    assert ("log scale" in axes.get_ylabel()) == (scale == "log")
    bottoms = [s[0][1] for c in axes.containers[0].lines[2] for s in c.get_segments()]
    assert all(bottom > 0 for bottom in bottoms) or scale == "linear"


def test_labels_stand_apart(figure):
    (axes,) = figure.axes
    labelled = {p.label for p in DOTS if p.kind in ("found", "fraction", "fewer steps")}
    assert {text.get_text() for text in axes.texts} == labelled | {"budget 0.5", "budget 0.65"}
    boxes = [text.get_window_extent() for text in axes.texts]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    for p in DOTS:
        x, y = axes.transData.transform((p.share, p.distance))
        assert not any(box.contains(x, y) for box in boxes)


def test_a_label_without_room_is_left_out_and_found_plans_come_first():
    crowd = [Dot("fraction", f"a label of the seam {i}", 0.5 + i / 1000, 1 + i / 1000) for i in range(60)]
    drawn = frontier_figure([*crowd, Dot("found", "found", 0.53, 1.03)], [], (), "", "distance").axes[0]
    texts = [text.get_text() for text in drawn.texts]
    assert "found" in texts
    assert 1 < len(texts) < 61
    for one, other in itertools.combinations([text.get_window_extent() for text in drawn.texts], 2):
        assert not one.overlaps(other)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: frontier_png([], FRONTIER, 0.5, "", ""), "at least one measured point"),
        (lambda: frontier_png(DOTS, [(0.5, math.inf)], 0.5, "", ""), "finite"),
        (lambda: frontier_png(DOTS, [], math.nan, "", ""), "finite"),
        (lambda: Dot("lost", "", 0.5, 1.0), "kind is one of other, fewer steps"),
        (lambda: Dot("found", "", math.nan, 1.0), "finite numbers"),
        (lambda: Dot("found", "", 0.5, 1.0, -0.1), "at least 0"),
        (lambda: Dot("found", "", -0.5, 1.0), "at least 0"),
        (lambda: plans_png([], ["a"]), "no plan to draw"),
        (lambda: plans_png([("x", Plan.explicit(["a", "b", "c"]))], ["a"]), "plans name b, c; members.* are a"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, said):
    with pytest.raises(HemstitchError, match=said):
        make()


def test_a_missing_matplotlib_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"hemstitch\[report\]"):
        frontier_png(DOTS, [], 0.5, "", "distance")
    with pytest.raises(MissingExtraError, match=r"hemstitch\[report\]"):
        plans_png([("one", Plan.explicit(["a"]))], ["a"])


def bars(figure):
    """(row, left, width, colour) of every bar."""
    return [
        (round(b.get_y() + b.get_height() / 2), b.get_x(), b.get_width(), b.get_facecolor())
        for b in figure.axes[0].patches
    ]


def test_a_plan_is_a_strip_of_its_runs():
    plans = [("seam", Plan.steps_each({"s": 3, "l": 7})), ("turns", Plan.explicit(["s", "l"] * 5))]
    drawn = plans_figure(plans, ["s", "l"])
    (axes,) = drawn.axes
    small, large = (handle.get_facecolor() for handle in drawn.legends[0].get_patches())
    first = [bar for bar in bars(drawn) if bar[0] == 0]
    assert first == [(0, 0, 3, small), (0, 3, 7, large)]
    assert [bar[1:3] for bar in bars(drawn) if bar[0] == 1] == [(i, 1) for i in range(10)]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["seam", "turns"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first plan on top
    assert axes.get_xlim() == (0, 10)
    assert "steps done" in axes.get_xlabel()
    assert not axes.texts


def test_plans_of_different_steps_have_one_length():
    plans = [("all", Plan.explicit(["l"] * 8)), ("fewer", Plan.explicit(["s", "l"])), ("one", Plan.explicit(["l"]))]
    drawn = plans_figure(plans, ["s", "l"])
    assert [bar[:3] for bar in bars(drawn)] == [(0, 0, 1), (1, 0, 0.5), (1, 0.5, 0.5), (2, 0, 1)]
    assert [text.get_text() for text in drawn.axes[0].texts] == ["8 steps", "2 steps", "1 step"]
    assert drawn.axes[0].get_xlim() == (0, 1)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_dearer_members_are_darker_in_grey(n):
    names = [f"member {i}" for i in range(n)]
    legend = plans_figure([("all", Plan.explicit(names))], names).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == names
    grey = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b, _ in (p.get_facecolor() for p in legend.get_patches())]
    assert all(lighter - darker > 0.06 for lighter, darker in itertools.pairwise(grey))


def test_steps_are_told_apart_where_there_is_room():
    few, many = (plans_figure([("x", Plan.explicit(["a"] * n))], ["a"]).axes[0] for n in (100, 101))
    assert [len(c.get_segments()) for c in few.collections] == [99]
    assert not many.collections
