"""Hot path: which token buckets apply to a key, and how full an answer says they are. Pure."""

from math import ceil

import msgspec

REQUESTS, TOKENS = "requests", "tokens"


class Bucket(msgspec.Struct, frozen=True, gc=False):
    """A token bucket in Redis: full at `capacity`, refilled by `per_minute`, shared by `scope`."""

    name: str
    unit: str
    capacity: int
    per_minute: int
    scope: str


class Rates(msgspec.Struct, frozen=True):
    """What an operator sets for a key or tenant; None means no limit of that kind."""

    rpm: int | None = None
    burst: int | None = None
    tpm: int | None = None

    def or_default(self, default: "Rates") -> "Rates":
        """Fill each kind that is not set from the defaults."""
        return Rates(
            rpm=self.rpm or default.rpm,
            burst=self.burst if self.rpm else default.burst,
            tpm=self.tpm or default.tpm,
        )


def buckets(scope: str, prefix: str, rates: Rates) -> tuple[Bucket, ...]:
    """Return a scope's buckets; `prefix` is the Redis key without its last part."""
    found = []
    if rates.rpm:
        found.append(Bucket(f"{prefix}:rpm", REQUESTS, rates.burst or rates.rpm, rates.rpm, scope))
    if rates.tpm:
        found.append(Bucket(f"{prefix}:tpm", TOKENS, rates.tpm, rates.tpm, scope))
    return tuple(found)


class Standing(msgspec.Struct, frozen=True, gc=False):
    """How full a bucket is after a decision; `level` below 0 is a debt."""

    bucket: Bucket
    level: int

    @property
    def reset_seconds(self) -> float:
        """Return the time until the bucket is full again."""
        return max(0, self.bucket.capacity - self.level) * 60 / self.bucket.per_minute


def tightest(standings: tuple[Standing, ...], unit: str) -> Standing | None:
    """Return the bucket of a unit with the least left: the one the client will meet first."""
    found = None
    for standing in standings:
        if standing.bucket.unit == unit and (found is None or standing.level < found.level):
            found = standing
    return found


def show_duration(seconds: float) -> str:
    """Write a duration as OpenAI's headers do: 12ms, 1.5s, 6m0s."""
    milliseconds = ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds <= 59_900:
        return f"{ceil(milliseconds / 100) / 10:g}s"
    minutes, rest = divmod(ceil(milliseconds / 1000), 60)
    if minutes < 60:
        return f"{minutes}m{rest}s"
    return f"{minutes // 60}h{minutes % 60}m{rest}s"
