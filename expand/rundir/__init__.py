"""A run on disk: its file names, its journal, its lock, and writes that a kill cannot leave half done."""
