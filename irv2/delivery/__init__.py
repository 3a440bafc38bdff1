"""Bundles to registries of container images and back."""
