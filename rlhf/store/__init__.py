"""What stages leave on disk."""
