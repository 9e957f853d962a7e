"""Batches for training and evaluation: clips prepared, sampled, cropped, and brought to the device."""
