"""Smaller models that are proven: GPTQ, AWQ and INT8, a block at a time, checked before they are accepted."""
