"""The Hub: model cards, export and push, and loading pipelines by name, folder or Hub id."""
