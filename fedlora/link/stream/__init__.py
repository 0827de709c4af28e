"""The gRPC stream between a device and the server, over TLS."""
