"""Where images come from: folders, packed files and registered data sets."""
