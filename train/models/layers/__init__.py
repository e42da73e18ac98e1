"""One file a framework: what the networks of all families share in it, so that each convention is written once."""
