"""Weights in and out: files, formats, inflation, the zoo."""
