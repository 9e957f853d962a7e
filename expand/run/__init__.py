"""The life of a run: created, resumed, driven to its end, reported; searches and single trainings."""
