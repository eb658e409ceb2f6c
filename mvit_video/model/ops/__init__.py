"""Operators: the only place that knows devices."""
