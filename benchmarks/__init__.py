"""Figures of Callsheet beside its peers, on real workers: `python -m benchmarks`."""
