"""The supervisor's word to its operator, on standard error.

Nobody waits for who reads it: what cannot be written at once is left out.
"""

import contextlib
import os
import select
import sys

PIECE_BYTES = 4000  # a pipe that is writable takes so much whole (PIPE_BUF, 4096 on Linux)


def report(text: str) -> None:
    """Print a line, unless nobody takes it."""
    line = f"sluice: {text}\n".encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError, ValueError, AttributeError):  # gone, closed, never open
        fd = sys.stderr.fileno()
        for start in range(0, len(line), PIECE_BYTES):
            _, writable, _ = select.select([], [fd], [], 0)
            if not writable:
                return
            os.write(fd, line[start : start + PIECE_BYTES])
