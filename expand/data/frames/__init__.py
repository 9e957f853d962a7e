"""Frames of clips: decoded from files and folders, and kept in a cache that is found by content."""
