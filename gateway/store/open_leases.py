"""The leases that a worker holds: extended as long as it lives."""

from collections.abc import Callable
from time import monotonic

from gateway.store import names, scripts
from gateway.store.client import Client
from gateway.store.connection import Reply
from gateway.store.lease import batches


class OpenLeases:
    """`by_id` has each lease's tenant, and since when it is held (monotonic seconds).

    `refused` is told of a tenant's part of Redis that takes no signs of life.
    """

    def __init__(
        self, client: Client, lease_seconds: float, refused: Callable[[str], None]
    ) -> None:
        self._client, self._lease_seconds, self._refused = client, lease_seconds, refused
        self.by_id: dict[str, tuple[str, float]] = {}
        self.missing: set[str] = set()  # among them are some that Redis does not have any more
        self._extended_at: dict[str, float] = {}  # by tenant, the last time Redis has said so

    def may_be_gone(self, lease: str) -> bool:
        """Tell whether a lease may have been taken for a dead worker's: it was not extended."""
        opened = self.by_id.get(lease)
        if opened is None:
            return False
        tenant, since = opened
        # One that was new when others were extended has lost a third of its time at the most.
        sure = max(since, self._extended_at.get(tenant, since))
        return lease in self.missing or monotonic() - sure > self._lease_seconds * 2 / 3

    def extend(self) -> None:
        """Move the deadlines of those that are not brand new."""
        now = monotonic()
        old = now - self._lease_seconds / 3
        by_tenant: dict[str, list[str]] = {}
        for lease, (tenant, since) in self.by_id.items():
            if since < old:
                by_tenant.setdefault(tenant, []).append(lease)
        for tenant, leases in by_tenant.items():
            for some in batches(leases):
                self._send(tenant, some, now)
        for tenant in self._extended_at.keys() - by_tenant.keys():
            del self._extended_at[tenant]

    def _send(self, tenant: str, leases: list[str], sent_at: float) -> None:
        def done(reply: Reply | Exception) -> None:
            if isinstance(reply, Exception):
                self._refused(tenant)
                return
            if reply < len(leases):
                self.missing.update(self.by_id.keys() & leases)
            self._extended_at[tenant] = sent_at

        args = (b"%d" % int(self._lease_seconds * 1000), *[one.encode() for one in leases])
        self._client.run(scripts.EXTEND, [names.leases(tenant)[0]], args, done)
