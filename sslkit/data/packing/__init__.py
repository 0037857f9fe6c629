"""Pack images once to a .beton file, and open it."""
