"""The wrapper beside the servers that others would take, and beside what arithmetic says of it."""
