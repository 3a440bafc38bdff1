"""Training curves, from our logs and from the original's."""
