"""carvana-batch from Python, for notebooks and other programs; see docs/api.md."""
