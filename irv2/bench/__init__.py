"""The way benchmarks are run: cases in turn, ratios, one benchmark at a time."""
