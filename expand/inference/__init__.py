"""A trained network at work: tested by the published protocol, and asked about files."""
