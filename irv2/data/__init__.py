"""Data sets: folders and shards of labelled images, and the built-in samples."""
