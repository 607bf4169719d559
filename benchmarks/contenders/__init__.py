"""The same jobs on Callsheet and on each peer, written and set up as its own documentation advises.

Each module holds what its worker loads, and the caller's side for `benchmarks.drive`: `publish`, `wait` and `run`.
"""
