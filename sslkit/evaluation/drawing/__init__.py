"""Figures drawn by evaluators."""
