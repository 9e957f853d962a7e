"""Finds the X3D-family network that spends a compute budget best on your clips."""

__version__ = "0.1.0"
