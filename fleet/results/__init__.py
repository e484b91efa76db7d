"""What a run leaves behind: checkpoint, export, summary, report."""
