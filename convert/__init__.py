"""From a checkpoint to a bundle: ONNX, engines and the parity gate."""
