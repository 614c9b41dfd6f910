"""The systemd unit passes systemd's own validator, and its time-outs fit the gateway's drain."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "sluice.service"

# `systemd-analyze security` in tenths: 15 is an exposure of 1.5 of 10. The unit stands at 1.2;
# the rest is the slack for what newer versions of systemd count.
EXPOSURE_TENTHS = 15
# The first version with `security --offline`.
OFFLINE_SECURITY_SYSTEMD = 250


def settings(text: str) -> dict[str, list[str]]:
    """Every `Key=value` of a unit, with the values of a repeated key in order."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith(("#", ";")):
            found.setdefault(key.strip(), []).append(value.strip())
    return found


def setting(key: str) -> str:
    """The last value of a key of the unit."""
    return settings(UNIT.read_text())[key][-1]


@pytest.fixture
def systemd_analyze() -> str:
    """The validator, where systemd is installed."""
    path = shutil.which("systemd-analyze")
    if path is None:
        pytest.skip("systemd-analyze is not installed")
    return path


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a command that is there: verify refuses one that is not."""
    command = shutil.which("true")
    assert command is not None
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={command}", UNIT.read_text()))
    return copy


def verify(systemd_analyze: str, unit: Path) -> subprocess.CompletedProcess[str]:
    """What `systemd-analyze verify` says of a unit file."""
    return subprocess.run(
        [systemd_analyze, "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_systemd_verifies_the_unit_without_a_word(systemd_analyze: str, unit: Path) -> None:
    result = verify(systemd_analyze, unit)
    about_the_unit = [line for line in result.stderr.splitlines() if unit.name in line]
    assert (result.returncode, about_the_unit) == (0, []), result.stderr


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("NoNewPrivileges=yes", "NoNewPrivilege=yes"),
        ("KillMode=mixed", "KillMode=gently"),
        ("WatchdogSec=30", "WatchdogSec=soon"),
        ("~@privileged", "~@privileges"),
    ],
)
def test_systemd_sees_a_mistake(systemd_analyze: str, unit: Path, good: str, bad: str) -> None:
    text = unit.read_text()
    assert good in text
    unit.write_text(text.replace(good, bad))
    assert unit.name in verify(systemd_analyze, unit).stderr


def test_the_sandbox_is_tight(systemd_analyze: str, unit: Path) -> None:
    version = subprocess.run(
        [systemd_analyze, "--version"], capture_output=True, text=True, check=True
    )
    number = re.match(r"systemd (\d+)", version.stdout)
    if number is None or int(number[1]) < OFFLINE_SECURITY_SYSTEMD:
        pytest.skip(f"systemd-analyze security --offline needs {OFFLINE_SECURITY_SYSTEMD}")
    result = subprocess.run(
        [
            systemd_analyze,
            "security",
            "--no-pager",
            "--offline=true",
            f"--threshold={EXPOSURE_TENTHS}",
            str(unit),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("ExecStart", "/opt/sluice/bin/sluice serve --config /etc/sluice/sluice.yaml"),
        ("ExecReload", "/bin/kill -HUP $MAINPID"),
        ("EnvironmentFile", "-/etc/sluice/environment"),
        ("StateDirectory", "sluice"),
        ("StateDirectoryMode", "0700"),
        ("RuntimeDirectory", "sluice"),
        ("User", "sluice"),
        ("KillMode", "mixed"),
        ("Restart", "on-failure"),
        ("LimitNOFILE", "1048576"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("PrivateDevices", "yes"),
        ("MemoryDenyWriteExecute", "yes"),
        ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6"),
        ("CapabilityBoundingSet", ""),
    ],
)
def test_the_unit_says(key: str, value: str) -> None:
    assert setting(key) == value


def test_the_state_directory_is_the_gateways_own() -> None:
    assert setting("Environment") == f"SLUICE_STATE_DIR=%S/{setting('StateDirectory')}"


def test_system_calls_are_an_allow_list_that_is_only_narrowed() -> None:
    filters = settings(UNIT.read_text())["SystemCallFilter"]
    assert filters[0] == "@system-service"
    assert all(later.startswith("~") for later in filters[1:])


def test_systemd_waits_longer_than_the_default_drain() -> None:
    from gateway.config.load import load_text

    drain = load_text("server: {}\n", "defaults", {}).server.drain
    assert int(setting("TimeoutStopSec")) > drain.lame_duck + drain.grace + 10
