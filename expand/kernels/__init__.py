"""Operators of our own: compiled C++ for the CPU, Triton for a GPU. Where neither is at hand, PyTorch's take over."""
