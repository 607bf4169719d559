"""Questions that calls ask people, and their answers."""
