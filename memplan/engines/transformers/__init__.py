"""Hugging Face transformers 4.31 to 5.23: `from_pretrained` and `generate`, on GPUs, spilling to the host."""
