"""What a recipe would take on some GPUs: batches, memory, disk, time and commands, before anything is loaded."""
