"""The report, packing, and links to other software."""
