"""The `sluice` command as an operator runs it, against the store of a gateway that serves."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.gateway import PASSED_ON, ROOT, Gateway

COMMAND_SECONDS = 60


def sluice(
    directory: Path, config_file: Path | None, *words: str, encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    """Run the command against the gateway that keeps its state there, in such a terminal."""
    environ = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    given = ["--config", str(config_file)] if config_file else []
    return subprocess.run(
        [sys.executable, "-m", "workers", words[0], *given, *words[1:]],
        cwd=ROOT,
        env={**environ, "SLUICE_STATE_DIR": str(directory), "PYTHONIOENCODING": encoding},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding=encoding,
        timeout=COMMAND_SECONDS,
    )


def run(gateway: Gateway, *words: str) -> str:
    """What a command prints; it must succeed and complain of nothing."""
    done = sluice(gateway.state, gateway.config_file, *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def failed(gateway: Gateway, *words: str) -> tuple[int, str]:
    """The exit code and the last words of a command that must not succeed."""
    done = sluice(gateway.state, gateway.config_file, *words)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip().splitlines()[-1]
