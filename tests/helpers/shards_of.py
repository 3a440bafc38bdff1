"""Shards so small that a folder of a few images fills several."""

SHARD_BYTES = 8_000
