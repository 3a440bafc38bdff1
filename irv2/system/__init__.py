"""Access to the machine: files, the cache, cores, GPUs, progress on a terminal."""
