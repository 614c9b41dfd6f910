"""What the README says of errors, and what a repeated `make` does, holds."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gateway.core.errors import FAULTS
from tests.support.gateway import ROOT


def test_every_error_code_is_explained_and_used() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [code for code in FAULTS if f"`{code}`" not in readme] == []
    files = [path for path in (ROOT / "gateway").rglob("*.py") if path.name != "errors.py"]
    code = "".join(path.read_text() for path in files)
    assert [name for name in FAULTS if f'"{name}"' not in code] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_an_environment_that_could_not_be_made_is_made_again(tmp_path: Path) -> None:
    """As Debian's Python without python3-venv does: it leaves one without pip."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho once more\nmkdir -p "$3/bin" && touch "$3/bin/python"\nexit 1\n'
    )
    python.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for _ in range(2):
        done = subprocess.run(
            ["make", ".venv/bin/python", f"PYTHON={python}"],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode != 0
        assert "once more" in done.stdout
        assert not (tmp_path / ".venv").exists()
