"""Functions of raw samples. Nothing here measures anything."""
