"""Several processes that answer gRPC in front of one engine (docs/serving.md)."""
