"""The C++ search, and how it is built on the user's machine."""
