"""Guards against failures that would lose or falsify a run."""
