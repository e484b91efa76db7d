"""A run on this machine or elsewhere: start it, follow it, check it."""
