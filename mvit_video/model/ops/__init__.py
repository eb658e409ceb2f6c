"""Operators: the only place that dispatches by device."""
