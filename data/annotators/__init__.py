"""What several people's votes on the same pairs say together, and how far each of them can be relied on."""
