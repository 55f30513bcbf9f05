"""Data sets: sources, canonical rows, templates, and the toy world."""
