"""From encoded images to answers: admission, decoding, batches. No gRPC context in it."""
