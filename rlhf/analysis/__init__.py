"""Figures about runs, without torch."""
