"""Benchmarks of engines."""
