"""The wrapper compared with other servers, and the gain of batching compared with the predicted one."""
