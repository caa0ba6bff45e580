"""Profiles: what memory really does, on a GPU, on the CPU, or replayed with no GPU at all."""
