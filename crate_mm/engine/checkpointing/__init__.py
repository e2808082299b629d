"""Checkpoints and results of a run: where it starts, what it writes."""
