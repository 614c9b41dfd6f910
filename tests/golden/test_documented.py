"""CONTRIBUTING.md says which recordings are read, and which are not and why: it must be so."""

import re
from collections import Counter

import pytest

from tests.golden.recordings import LEFT_OUT, NEEDS_RECORDINGS, RECORDINGS, ROOT, WHY_LEFT_OUT

pytestmark = NEEDS_RECORDINGS
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_table_of_recordings_is_what_the_tests_read() -> None:
    counted = Counter((one.provider, one.api, one.stream) for one in RECORDINGS)
    rows = re.findall(r"^\| ([\w-]+) \| (\w+) \| (\d+) \| (\d+) \| [^|]+ \|$", TEXT, re.M)
    documented = {(p, api): (int(streams), int(whole)) for p, api, streams, whole in rows}
    found = {(p, api): (counted[p, api, True], counted[p, api, False]) for p, api, _ in counted}
    assert documented == found


@pytest.mark.parametrize("pattern", WHY_LEFT_OUT)
def test_what_is_left_out_is_named_with_its_reason(pattern: str) -> None:
    reason = WHY_LEFT_OUT[pattern]
    count = sum(why == reason for why in LEFT_OUT.values())
    assert f"| `{pattern}` | {count} | {reason} |" in TEXT
