"""Machine code as nvdisasm prints it: its instructions, and the loops that they stand in."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable
from dataclasses import dataclass

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.x]*)(.*)")
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_HGMMA = re.compile(r"HGMMA\.(\d+)x(\d+)x(\d+)")
_HMMA = {"1688": 16 * 8 * 8, "16816": 16 * 8 * 16}  # rows, columns, depth


@dataclass(frozen=True)
class Code:
    names: tuple[str, ...]  # of the instructions, with their modifiers
    loops: tuple[range, ...]  # their places in names; loops that hold no other loop, in order

    def loop_names(self) -> list[tuple[str, ...]]:
        return [self.names[loop.start : loop.stop] for loop in self.loops]

    def once_names(self) -> tuple[str, ...]:
        """The instructions outside of these loops."""
        inside = {place for loop in self.loops for place in loop}
        return tuple(name for place, name in enumerate(self.names) if place not in inside)


def parse(text: str) -> Code:
    """A kernel's code, as ``nvdisasm -c`` prints it."""
    names: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(names)
        elif instruction := _INSTRUCTION.match(line):
            if instruction[1].startswith("BRA") and (target := _TARGET.search(instruction[2])):
                jumps.append((len(names), target[1]))
            names.append(instruction[1])
    ends: dict[int, int] = {}
    for place, target in jumps:
        if labels[target] < place:  # a jump to itself, the guard behind the last instruction, is no loop
            ends[labels[target]] = max(place, ends.get(labels[target], 0))
    loops = [range(start, end + 1) for start, end in sorted(ends.items())]
    innermost = [x for x in loops if not any(y is not x and y.start >= x.start and y.stop <= x.stop for y in loops)]
    return Code(tuple(names), tuple(innermost))


def families(names: Iterable[str]) -> collections.Counter[str]:
    """How many there are of each instruction, without its modifiers."""
    return collections.Counter(name.split(".")[0] for name in names)


def macs(names: Iterable[str]) -> int:
    """Multiply-adds of the matrix units, a warp."""
    total = 0
    for name in names:
        if shape := _HGMMA.match(name):
            total += int(shape[1]) * int(shape[2]) * int(shape[3]) // 4  # four warps share one
        elif name.startswith("HMMA."):
            total += _HMMA[name.split(".")[1]]
    return total
