"""Configs of training runs: accelerate, DeepSpeed, torchtitan, transformers' arguments, torchrun."""
