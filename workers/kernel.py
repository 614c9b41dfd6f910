"""What the supervisor asks of the operating system: signals by a pipe, file descriptors, ends."""

import contextlib
import os
import resource
import signal
import sys

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


def open_standard_files() -> None:
    """Open those that are closed on nothing: or sockets would get their numbers, and their text."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed; its own number is the lowest that is free
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  as long as the process


def catch_signals() -> tuple[int, int]:
    """Let signals be numbers in a pipe; return its ends, to read from and to close at the end."""
    reading, writing = os.pipe()
    for fd in (reading, writing):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for signum in SIGNALS:
        signal.signal(signum, lambda *_: None)  # the wakeup pipe carries the number
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return reading, writing


def raise_file_limit() -> None:
    """Use as many file descriptors as this user may have: each client is one, or two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def how_it_ended(status: int) -> str:
    """Say how a process ended."""
    if os.WIFSIGNALED(status):
        return f"was ended by {_name(os.WTERMSIG(status))}"
    return f"exited with code {os.WEXITSTATUS(status)}"


def _name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # a real-time signal: only the first and the last have names
        return f"signal {signum}"
