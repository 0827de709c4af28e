"""Bits at the cut, and federated LoRA beside them."""
