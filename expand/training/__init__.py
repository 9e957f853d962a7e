"""Training: a candidate in, its outcome out."""
