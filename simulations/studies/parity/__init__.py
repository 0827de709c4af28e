"""Split training held to unsplit training on the same batches."""
