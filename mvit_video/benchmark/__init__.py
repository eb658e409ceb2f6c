"""Measuring: networks and data loading."""
