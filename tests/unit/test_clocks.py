"""A machine's clock may jump. Whatever is waited for or bounded goes by the one that does not."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateway
import workers

ROOT = Path(gateway.__file__).parents[1]
# Where the time of day is what is meant, and for what.
OF_THE_DAY = {
    "gateway/cli/doctor.py": "how far Redis's clock is from this machine's",
    "gateway/cli/keys.py": "when a key expires",
    "gateway/http/demo.py": "`created` of an answer",
    "gateway/http/head.py": "the Date header",
    "gateway/observe/webhook.py": "a signature's timestamp",
    "gateway/pipeline/ask.py": "Retry-After as a date",
    "gateway/pipeline/keyring.py": "when a key expires",
    "gateway/pipeline/passthrough.py": "Retry-After as a date",
    "gateway/pipeline/served.py": "prices by the hour",
    "gateway/spool.py": "a file's age, and its name",
    "gateway/store/keys.py": "when a key was made, and expires",
    "gateway/store/roster.py": "Redis's clock, as far from ours as its last answer said",
    "gateway/store/usage.py": "today's counters",
    "gateway/upstream/aws_signature.py": "a signature's date",
    "gateway/upstream/credentials.py": "a signed claim's times",
}
WALL = {"time", "time_ns", "gmtime", "localtime", "now", "utcnow", "today"}


def files() -> list[Path]:
    packages = [Path(one.__file__ or "").parent for one in (gateway, workers)]
    return sorted(path for folder in packages for path in folder.rglob("*.py"))


def wall_clocks(tree: ast.AST) -> Iterator[int]:
    """The lines that read the time of day."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Attribute(value=ast.Name(id="time" | "datetime" | "date"), attr=attr):
                if attr in WALL:
                    yield node.lineno
            case ast.Name(id="time" | "time_ns"):
                yield node.lineno


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_what_means_the_time_of_day_reads_it(path: Path) -> None:
    found = list(wall_clocks(ast.parse(path.read_text())))
    assert bool(found) == (str(path.relative_to(ROOT)) in OF_THE_DAY), f"lines {found}"


def test_it_would_be_noticed() -> None:
    code = "import time\ndeadline = time.time() + 5\nlater = time.monotonic()\n"
    assert list(wall_clocks(ast.parse(code))) == [2]
