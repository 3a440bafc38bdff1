"""How benchmarks are run: cases in turn, ratios, one at a time."""
