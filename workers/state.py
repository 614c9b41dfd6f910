"""The state directory: private, and used by one gateway at a time."""

import fcntl
import hashlib
import os
import tempfile
import time
from pathlib import Path

from gateway.core.errors import ConfigError

# The kernel's limit for a Unix socket's path is 108 bytes on Linux, 104 on macOS.
MAX_SOCKET_PATH = 100
LOCK_SECONDS = 5.0


class StateDirectory:
    """Made if absent (0700) and locked while this process or any child of it lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"cannot use {path}: {(error.strerror or '').lower()}; set SLUICE_STATE_DIR",
                field="server.state_dir",
            ) from None
        self._acquire()

    @property
    def lock_fd(self) -> int:
        """Return the descriptor that holds the lock; forked children share it."""
        return self._lock

    def socket_path(self, name: str) -> str:
        """Return a path for a Unix socket, elsewhere if the directory's own is too long."""
        return socket_path(self.path, name)

    def _acquire(self) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise ConfigError(
                        f"another gateway uses {self.path}; stop it, or set SLUICE_STATE_DIR to "
                        "another directory",
                        field="server.state_dir",
                    ) from None
                time.sleep(0.1)
            else:
                return


def socket_path(directory: Path, name: str) -> str:
    """Return where a socket of a state directory is; the same for everyone who asks."""
    path = str(directory / name)
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    digest = hashlib.sha256(os.fsencode(str(directory))).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"sluice-{os.getuid()}-{digest}"
    short.mkdir(mode=0o700, exist_ok=True)
    if short.stat().st_uid != os.getuid() or short.stat().st_mode & 0o077:
        raise ConfigError(f"{short} is not a private directory of ours", field="server.state_dir")
    return str(short / name)
