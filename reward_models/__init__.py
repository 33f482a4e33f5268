"""From text to reward."""
