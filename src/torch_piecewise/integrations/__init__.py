"""One file for each ecosystem; each needs its extra and is imported by name alone."""
