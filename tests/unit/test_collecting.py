"""The tests can be collected where nothing lies beside the project: what needs it is skipped."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_can_be_collected_without_fixtures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
    surroundings = os.environ | {"SLUICE_FIXTURES": str(tmp_path / "none")}
    ended = subprocess.run(
        command, cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stdout[-2000:]
