"""Speed and memory of split training, beside plain PEFT on the same batches."""
