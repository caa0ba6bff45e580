"""Trainers: how each of them trains, what it can do, and the answer to a training question."""
