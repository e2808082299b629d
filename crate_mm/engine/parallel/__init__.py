"""Several processes, compiled blocks and micro-batches."""
