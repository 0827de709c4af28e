"""What one client that sends wrong gradients does to a run, under each average."""
