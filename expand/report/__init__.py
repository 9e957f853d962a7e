"""What a run says about itself, from its journal alone: the status, tables, the expansion figure."""
