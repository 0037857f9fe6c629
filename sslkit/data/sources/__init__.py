"""Sources of images: folders, packed files and registered data sets."""
