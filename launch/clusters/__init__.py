"""Runs on clusters: what one asks for, how each scheduler is told, how what was submitted is found again."""
