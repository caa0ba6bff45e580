"""Serving setups as files: what engines, containers and monitors read. Nothing here computes memory."""
