"""Datasets checked and re-encoded before training."""
