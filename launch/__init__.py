"""Where and on how many processes stages run. Loads no torch: what needs it runs as a child process."""
