"""Federated split fine-tuning of language models with LoRA, over links that fade."""

__version__ = "0.1.0"
