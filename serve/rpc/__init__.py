"""The gRPC services and what their calls share."""
