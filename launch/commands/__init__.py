"""The commands of `rlhf`, a file each."""
