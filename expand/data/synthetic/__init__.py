"""Clips made to order, whose classes need a chosen axis: the built-in set and `data synth`."""
