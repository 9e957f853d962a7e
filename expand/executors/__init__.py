"""Where candidates are trained. An executor takes jobs and yields their outcomes as they come."""
