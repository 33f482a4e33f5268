"""Where examples come from: files, the embedded task, simulated votes; splits; scorers. Loads no torch."""
