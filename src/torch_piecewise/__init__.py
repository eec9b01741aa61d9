"""Piecewise compilation of PyTorch models."""
