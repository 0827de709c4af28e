"""What of a client's data leaves with its gradients and activations: one file a mechanism."""
