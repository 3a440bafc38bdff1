"""Requests over HTTP on the port of `--http`, in front of what answers gRPC (docs/serving.md)."""
