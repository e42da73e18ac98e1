"""One file a framework: REQUIRES (modules), WRITES (formats, the native one first) and `export(...)`."""
