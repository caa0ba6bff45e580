"""Formulas: from a ModelSpec and a layout to bytes. No I/O, no engine, no GPU name; engines compose what is here."""
