"""Whatever maps images to logits: torch (the reference), ONNX Runtime, TensorRT.

Each runner imports its engine's library when it is built, so that none is needed for the others.
"""
