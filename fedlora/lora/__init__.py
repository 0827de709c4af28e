"""LoRA with a rank for each client and projection."""
