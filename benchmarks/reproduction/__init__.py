"""The two papers' claims on real data, at a scale that a small machine allows: python -m benchmarks.reproduction."""

# Modules with `tasks` and `summary`, in the order in which their work is taken.
PARTS = (
    "choose",
    "switch",
    "stitching",
    "unets",
    "intervals",
    "beyond",
    "ablations",
    "colour",
    "attempts",
    "early",
)
