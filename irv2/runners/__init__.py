"""The engines that map images to logits: torch (the reference), ONNX Runtime, TensorRT.

Each runner imports its engine's library when it is built, so no runner needs another's library.
"""
