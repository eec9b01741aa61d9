"""Continuous batching over compiled pieces, in some two hundred lines."""
