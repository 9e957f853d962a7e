"""Progressive expansion as pure decisions: nothing here trains, writes or imports torch."""
