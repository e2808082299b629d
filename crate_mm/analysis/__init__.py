"""The white box: taps, measures and figures of the layers."""
