"""Optimizers, learning-rate schedules, and optimizer state."""
