"""Environments that do not wait: one step is one frame."""
