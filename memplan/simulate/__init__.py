"""Simulated serving: a scheduler and its cache under traffic, step by step, before anything is deployed."""
