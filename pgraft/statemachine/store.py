"""Keys, leases, history and the revision, kept consistent with each other.

A command makes its changes one by one with `put` and `delete`; reads see them at once. Then `commit` makes
them one revision, or `undo` takes them all back. The single changes of a command all carry the revision
that it will be.
"""

from __future__ import annotations

from pgraft.statemachine.history import History
from pgraft.statemachine.leases import LeaseTable
from pgraft.statemachine.limits import BYTES_PER_KEY_MIN, DELETES_MAX, LEASE_KEYS_MAX
from pgraft.statemachine.record import RECORD_HEAD_BYTES, head_of, lease_of, make_deletion, make_record
from pgraft.statemachine.results import Refusal, Refused
from pgraft.statemachine.sorted_map import SortedMap


class RequestRefused(Exception):
    """The command must not have any effect. Caught where commands are run; it never leaves the machine."""

    def __init__(self, reason: Refusal, text: str) -> None:
        super().__init__(text)
        self.result = Refused(reason, text)


class Store:
    """The state of a key-value machine."""

    __slots__ = ("_changes", "_deletes", "_old_size", "history", "keys", "leases", "revision", "size")

    def __init__(self) -> None:
        self.revision = 0
        self.size = 0
        """Bytes of all keys and values."""
        self.keys = SortedMap()
        self.leases = LeaseTable()
        self.history = History()
        self._changes: list[tuple[bytes, bytes | None, bytes | None]] = []
        """Of the command that runs: key, record before, record after."""
        self._deletes = 0
        self._old_size = 0

    def put(self, key: bytes, value: bytes, lease_id: int) -> None:
        """Set a key. Raises RequestRefused when there is no such lease, or it has too many keys."""
        old = self.keys.get(key)
        revision = self.revision + 1
        if old is None:
            create, version, old_lease = revision, 1, 0
        else:
            create, _, version, old_lease = head_of(old)
            version += 1
        if lease_id and lease_id != old_lease:
            self._check_lease(lease_id)
        self._set(key, old, make_record(create, revision, version, lease_id, value))

    def delete(self, key: bytes) -> bool:
        """Delete a key; whether there was one."""
        old = self.keys.get(key)
        if old is None:
            return False
        self._set(key, old, None)
        return True

    def count_deletes(self, count: int) -> None:
        """The command is about to delete so many keys. Raises RequestRefused for too many in all."""
        self._deletes += count
        if self._deletes > DELETES_MAX:
            text = (
                f"one request can delete at most {DELETES_MAX} keys, and this one finds more: do it in parts"
            )
            raise RequestRefused(Refusal.TOO_MANY_DELETES, text)

    def check_size(self, max_bytes: int) -> None:
        """Raises RequestRefused when the command's changes make the store too large. What makes it smaller is
        always possible, also when the limit was lowered."""
        if self.size <= self._size_before():
            return
        if self.size > max_bytes:
            text = f"keys and values would take {self.size} bytes, and pgraft.kv_max_bytes is {max_bytes}"
            raise RequestRefused(Refusal.STORE_FULL, text)
        if len(self.keys) * BYTES_PER_KEY_MIN > max_bytes:
            most = max_bytes // BYTES_PER_KEY_MIN
            text = (
                f"there would be {len(self.keys)} keys, and a store of {max_bytes} bytes holds at most {most}"
            )
            raise RequestRefused(Refusal.STORE_FULL, text)

    def commit(self) -> int:
        """Make the command's changes a revision, if there are any; the store's revision afterwards."""
        changes = self._changes
        if not changes:
            return self.revision
        self.revision += 1
        history = self.history
        history.add_revision()
        for key, old, new in changes:
            if old is not None:
                history.replaced(key, old)
            if new is None:
                history.add_event(key, make_deletion(self.revision), True)
            else:
                history.add_event(key, new, False)
        history.trim()
        self._forget_changes()
        return self.revision

    def undo(self) -> None:
        """Take the command's changes back."""
        for key, old, new in reversed(self._changes):
            self._exchange(key, new, old)
        self._forget_changes()

    def reset(self) -> int:
        """Drop everything, as a revision of its own; how many keys there were."""
        count = len(self.keys)
        self.revision += 1
        self.size = 0
        self.keys = SortedMap()
        self.leases = LeaseTable()
        self.history = History(self.revision + 1)
        return count

    def _set(self, key: bytes, old: bytes | None, new: bytes | None) -> None:
        if not self._changes:
            self._old_size = self.size
        self._changes.append((key, old, new))
        self._exchange(key, old, new)

    def _exchange(self, key: bytes, old: bytes | None, new: bytes | None) -> None:
        """Put `new` in the place of `old`, with everything that depends on it."""
        old_lease = new_lease = 0
        if old is not None:
            old_lease = lease_of(old)
            self.size -= len(key) + len(old) - RECORD_HEAD_BYTES
        if new is None:
            self.keys.remove(key)
        else:
            new_lease = lease_of(new)
            self.size += len(key) + len(new) - RECORD_HEAD_BYTES
            self.keys.put(key, new)
        if old_lease != new_lease:
            if old_lease:
                self.leases.detach(old_lease, key)
            if new_lease:
                self.leases.attach(new_lease, key)

    def _check_lease(self, lease_id: int) -> None:
        if lease_id not in self.leases:
            raise RequestRefused(
                Refusal.LEASE_UNKNOWN, f"there is no lease {lease_id}: it has ended, or never was"
            )
        if self.leases.count_of(lease_id) >= LEASE_KEYS_MAX:
            text = f"lease {lease_id} has {LEASE_KEYS_MAX} keys, which is as many as one lease can have"
            raise RequestRefused(Refusal.LEASE_KEYS_FULL, text)

    def _size_before(self) -> int:
        return self._old_size if self._changes else self.size

    def _forget_changes(self) -> None:
        self._changes = []
        self._deletes = 0
