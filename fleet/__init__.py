"""The operator's desk: the `pruneseal` command."""
