"""Data sets as they lie on disk, and their vocabularies."""
