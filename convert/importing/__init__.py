"""Published weights become checkpoints: recognised by content, matched tensor by tensor."""
