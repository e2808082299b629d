"""The start checkpoint, the written checkpoints and the results of a run."""
