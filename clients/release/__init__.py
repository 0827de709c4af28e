"""What of a client's data leaves with its gradients and activations, by when it is paid for."""
