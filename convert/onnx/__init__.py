"""Checkpoints as ONNX files, one per precision."""
