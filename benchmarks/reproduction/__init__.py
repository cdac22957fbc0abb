"""The two papers' claims on real data, at a scale that a small machine allows: python -m benchmarks.reproduction."""
