"""Tasks, data, partitioning and metrics."""
