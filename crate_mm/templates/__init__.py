"""The files that ``crate-mm new`` writes, and the worked examples of CONTRIBUTING.md: no module imports them."""
