"""Images: from encoded bytes to the uint8 pixels that a network takes."""
