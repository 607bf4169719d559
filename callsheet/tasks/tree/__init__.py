"""The tree of a job: what ran where, what waits, and what it took."""
