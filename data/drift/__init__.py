"""Whether votes change from one batch to the next: in what people prefer, in their habits, and on the same pairs."""
