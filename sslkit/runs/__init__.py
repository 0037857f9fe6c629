"""A run on disk and what is read from it: directory, checkpoints, records, energy, trackers, report."""
