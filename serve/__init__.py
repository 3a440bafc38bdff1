"""The gRPC server: admission, decoding, batching, health, metrics. Never imports torch."""
