"""Hooks of `loop.Loop`, one per file."""
