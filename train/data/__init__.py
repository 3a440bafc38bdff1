"""Training's input: order, decoding, augmentation."""
