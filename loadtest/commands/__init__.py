"""What implements the commands of `python -m loadtest`, several commands per file."""
