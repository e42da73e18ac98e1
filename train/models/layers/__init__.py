"""One file per framework: the layers that all families share, so that each convention is implemented once."""
