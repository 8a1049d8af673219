"""Images, captions, scenes and codes: everything that is read from or written to disk as data."""
