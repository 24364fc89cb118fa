"""A node that runs: the worker publishes and takes commands while somebody looks."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from pgraft.inspector.picture import take_picture
from pgraft.inspector.rings import take_rings
from pgraft.shm import segment as segments

BUSY_WORKER = """
import sys
from pgraft.shm import segment as segments
from pgraft.shm.blocks import Status, StatusWriter

segment = segments.attach(sys.argv[1])
writer, outbound, peer = StatusWriter(segment), segment.outbound_writer(), segment.outbound_reader()
commit = 0
while True:
    commit += 1
    writer.publish(Status(role=4, leader_id=1, term=commit, commit_index=commit, last_index=commit))
    outbound.put(bytes(16), b"x" * (commit % 5000))
    outbound.publish()
    if commit % 3 == 0:
        peer.read(1 << 20)
"""


def test_a_busy_worker_is_never_called_torn(node):
    worker = subprocess.Popen([sys.executable, "-c", BUSY_WORKER, node.name], cwd=Path(__file__).parents[3])
    reader = segments.attach(node.name, readonly=True)
    try:
        seen = set()
        until = time.monotonic() + 15
        while time.monotonic() < until and len(seen) < 200:
            picture = take_picture(reader)
            rings = take_rings(reader)
            notes = [*picture.notes, *rings.notes]
            assert not [note for note in notes if "newest copy" in note or "make no sense" in note]
            assert picture.status is not None
            if picture.status.term != 4:  # the one of the fixture
                assert picture.status.commit_index == picture.status.term == picture.status.last_index
            seen.add(picture.status.commit_index)
        assert len(seen) == 200
        assert worker.poll() is None
    finally:
        reader.close()
        worker.kill()
        worker.wait()
