"""What implements the commands of `python -m loadtest`, one file a command."""
