"""Shuffled batches of uint8 images on the device."""
