"""All fuzzers, by name. A guided run imports the module of its own only: what is imported is instrumented."""

from __future__ import annotations

from importlib import import_module

from tests.fuzz.target import Target

MODULES = {
    "frames": "wire",
    "handshakes": "wire",
    "incoming": "wire",
    "outgoing": "wire",
    "envelopes": "envelopes",
    "changes": "envelopes",
    "nodes": "nodes",
    "logs": "disk",
    "snapshots": "disk",
    "texts": "disk",
    "rings": "rings",
    "records": "rings",
    "commands": "rings",
    "blocks": "rings",
}


def load(name: str) -> Target:
    """The fuzzer with this name. Raises KeyError."""
    module = import_module(f"tests.fuzz.{MODULES[name]}")
    found: dict[str, Target] = {target.name: target for target in module.TARGETS}
    return found[name]
