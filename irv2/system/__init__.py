"""The machine below: files, the cache, cores, progress on a terminal."""
