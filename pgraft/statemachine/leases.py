"""The leases as every node knows them: id, time to live, keys. No clock: only the leader counts time
(lessor.py)."""

from __future__ import annotations

from bisect import bisect_left, insort


class Lease:
    """One lease. `keys` in their order, so that they are deleted in the same order everywhere."""

    __slots__ = ("keys", "ttl_ms")

    def __init__(self, ttl_ms: int) -> None:
        self.ttl_ms = ttl_ms
        self.keys: list[bytes] = []


class LeaseTable:
    """All leases."""

    __slots__ = ("_leases", "attached")

    def __init__(self) -> None:
        self._leases: dict[int, Lease] = {}
        self.attached = 0
        """Keys that have a lease."""

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, lease_id: int) -> bool:
        return lease_id in self._leases

    def ttls_ms(self) -> dict[int, int]:
        """Time to live of every lease, by id."""
        return {lease_id: lease.ttl_ms for lease_id, lease in self._leases.items()}

    def keys_of(self, lease_id: int) -> list[bytes]:
        """The keys of a lease, in order; empty when there is no such lease. The list is the caller's."""
        lease = self._leases.get(lease_id)
        return [] if lease is None else lease.keys.copy()

    def count_of(self, lease_id: int) -> int:
        """How many keys an existing lease has."""
        return len(self._leases[lease_id].keys)

    def grant(self, lease_id: int, ttl_ms: int) -> None:
        """A new lease."""
        self._leases[lease_id] = Lease(ttl_ms)

    def remove(self, lease_id: int) -> None:
        """A lease without keys ends."""
        del self._leases[lease_id]

    def attach(self, lease_id: int, key: bytes) -> None:
        """The key belongs to this lease from now on. It belongs to none yet."""
        insort(self._leases[lease_id].keys, key)
        self.attached += 1

    def detach(self, lease_id: int, key: bytes) -> None:
        """The key does not belong to this lease any more."""
        keys = self._leases[lease_id].keys
        del keys[bisect_left(keys, key)]
        self.attached -= 1
