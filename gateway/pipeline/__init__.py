"""One request's life. Read `serve`: authenticate, decode, admit, attempt, settle, in that order."""
