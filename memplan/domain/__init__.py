"""The values that every other part of memplan passes around: frozen, serialisable, and free of I/O and formulas."""
