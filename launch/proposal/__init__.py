"""What `rlhf init` proposes: sizes from the model's shape, the data's lengths, the device's memory. Loads no torch."""
