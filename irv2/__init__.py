"""IRv2: Inception-ResNet-v2 from training to serving. What the stages share lives here."""

__version__ = "0.1.0"
