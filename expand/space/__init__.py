"""The space of networks: factors, axes, shapes and costs. Nothing here imports torch."""
