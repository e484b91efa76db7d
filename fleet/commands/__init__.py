"""The commands of `pruneseal`, in modules by what they need: one that needs no torch does not wait for its import."""
