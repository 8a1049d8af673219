"""Photos and codes on disk."""
