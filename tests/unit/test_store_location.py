"""Redis URLs taken apart, without ever showing a password."""

import pytest

from gateway.core.errors import ConfigError
from gateway.store.location import Location, parse_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", Location()),
        ("redis://h", Location("h")),
        ("redis://h:1/3", Location("h", 1, database=3)),
        ("redis://h/", Location("h")),
        ("redis://h?db=4", Location("h", database=4)),
        ("redis://:p@h", Location("h", password="p")),
        ("redis://u:p%40%2F@h", Location("h", username="u", password="p@/")),
        ("redis://[::1]:7", Location("::1", 7)),
        ("rediss://h", Location("h", tls=True)),
        ("rediss://h?ssl_ca_certs=/ca.pem", Location("h", tls=True, ca_file="/ca.pem")),
        ("unix:///run/r.sock", Location(unix_path="/run/r.sock")),
        ("unix:///run/a%20b?db=2", Location(unix_path="/run/a b", database=2)),
        ("unix://u:p@/r", Location(unix_path="/r", username="u", password="p")),
    ],
)
def test_a_url_is_taken_apart(url: str, expected: Location) -> None:
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:6379",
        "http://h",
        "redis+sentinel://h",
        "redis://h:port",
        "redis://h:99999",
        "redis://h/one",
        "redis://h/-1",
        "redis://h?db=x",
        "redis://:secret@h:port",
        "redis://[::1",
        "unix://",
        "unix:///r?db=x",
        "unix://tmp/r.sock",
        "unix://u:p@tmp/r.sock",
        "redis://h?timeout=5",
        "redis://h?timeout=",
        "redis://h?ssl_ca_certs=/ca.pem",
        "unix:///r?ssl_ca_certs=/ca.pem",
        "redis://:pa?secret@h",
    ],
)
def test_a_wrong_url_is_refused_by_field_and_not_quoted(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert caught.value.field == "redis.url"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [("rediss://u:secret@h:1/2", "h:1"), ("unix://:secret@/run/r.sock", "/run/r.sock")],
)
def test_printing_a_location_shows_no_password(url: str, shown: str) -> None:
    place = parse_url(url)
    assert (str(place), repr(place)) == (shown, shown)
    assert place.password == "secret"
