"""The gate: whether a set of comparisons can be trusted, and what is wrong with it. Loads no torch."""
