"""Training: from image folders to a checkpoint, as the original did it."""
