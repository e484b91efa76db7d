"""The structure of a network's filters and neurons, and taking the dead ones out of it."""
