"""Model cards, and finding models by name, folder or Hub id."""
