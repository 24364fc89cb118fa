"""What came of a run."""

from __future__ import annotations

import msgspec

SHOWN_MAX = 20


class Report(msgspec.Struct):
    """Figures and violations. `own` is the form's; `held` is memory, descriptors and sockets by process."""

    form: str
    seed: int
    nodes: int
    seconds: float = 0
    faults: dict[str, int] = {}
    missed: dict[str, int] = {}
    acknowledged: int = 0
    refused: int = 0
    unknown: int = 0
    unknown_in_log: int = 0
    readings: int = 0
    entries: int = 0
    elections: int = 0
    gaps: int = 0
    longest_without_leader_s: float = 0
    held: dict[str, str] = {}
    own: dict[str, int | float | str] = {}
    violations: list[str] = []
    directory: str = ""

    def text(self) -> str:
        """For people."""
        lines = [
            f"form {self.form}, seed {self.seed}, {self.nodes} nodes, {self.seconds:.0f} s of faults",
            f"  faults {sum(self.faults.values())}: {counts_text(self.faults)}",
            f"  not possible at their moment: {counts_text(self.missed) or 'none'}",
            f"  entries acknowledged {self.acknowledged}, refused {self.refused}, unknown {self.unknown}"
            f" ({self.unknown_in_log} of them in the log); {self.entries} indexes; {self.readings} readings",
            f"  {self.elections} terms with a leader; {self.gaps} times without one, the longest"
            f" {self.longest_without_leader_s:.2f} s",
        ]
        lines += [f"  {part}: {text}" for part, text in self.held.items()]
        lines += [f"  {name}: {value}" for name, value in self.own.items()]
        lines += [f"VIOLATION {text}" for text in self.violations[:SHOWN_MAX]]
        lines.append(f"{len(self.violations)} violations")
        return "\n".join(lines)


def counts_text(counts: dict[str, int]) -> str:
    """As "kill worker 3, freeze worker 2"."""
    return ", ".join(f"{kind} {count}" for kind, count in counts.items())
