"""Proximal policy optimisation for language models: collect, shape, estimate, update."""
