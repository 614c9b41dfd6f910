"""The HTTP/1.1 client transport: dialling, connections, pools. Knows nothing of models or keys."""
