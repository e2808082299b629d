"""From datasets to batches on the device."""
