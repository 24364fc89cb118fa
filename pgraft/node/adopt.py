"""A Raft directory that was moved or restored becomes its member again, offline, by an operator's word.

Who gives it says that the original is gone for good. Peers take his word from the next incarnation, and
refuse older ones from then on. Whether the directory is the newest state, or an older copy, the word does not
say: it may have forgotten entries that it acknowledged and votes that it gave. So the node gives no vote
until it has caught up, unless the operator says that it is complete. See README.md, "A directory in another
place"."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pgraft.storage import Identity, StorageError, difference, load_identity, place_of, update_identity

NO_PLACE = "the release of pgraft that wrote it remembered no place"


class Adoption(msgspec.Struct, frozen=True):
    """What was found and done: `why` the directory was refused (empty: it is in its place already), and the
    identity as it is now; `changed` when that is another one than before."""

    why: str
    identity: Identity
    changed: bool


def adopt(data_dir: Path, *, complete: bool) -> Adoption:
    """Let the node live where the directory below `data_dir` is, whose lock the caller holds.

    `complete`: the directory is the newest state of its node. One write, atomic and durable. StorageError.
    """
    found = load_identity(data_dir)
    if found is None:
        raise StorageError(
            data_dir,
            None,
            "there is no Raft state of a node here",
            "pgraft.data_dir says where it is; a node that never ran has nothing to adopt.",
        )
    here = place_of(data_dir)
    why = difference(found.place, here) if found.place is not None else NO_PLACE
    if why:
        now = msgspec.structs.replace(
            found, place=here, incarnation=found.incarnation + 1, catching_up=not complete
        )
    elif complete:
        # Adopted without that word before, and waiting.
        now = msgspec.structs.replace(found, catching_up=False)
    else:
        now = found
    if now != found:
        update_identity(data_dir, now)
    return Adoption(why, now, now != found)
