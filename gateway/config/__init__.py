"""What an operator may configure: the schema, and reading it from a file and the environment."""
