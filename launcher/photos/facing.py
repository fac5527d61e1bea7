"""Which way round the images of a set show what they show: a face is not symmetrical, and is learned as it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["both-ways", "one-way", "unknown"]


@dataclass(frozen=True)
class Facing:
    """The verdict on a whole set, and what it rests on.

    `turned` are the fewer of those that are mirror images of others; `selfies` come from front cameras, which many
    phones store mirrored. "unknown": no two images show the same, so nothing can be compared.
    """

    verdict: Verdict
    mirror_pairs: int
    turned: tuple[str, ...]
    selfies: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "mirror_pairs": self.mirror_pairs,
            "turned": list(self.turned),
            "front_camera": list(self.selfies),
        }


def facing(pairs: Sequence[tuple[str, str, str]], selfies: Iterable[str] = ()) -> Facing:
    """The verdict from (kind, image, image) of images that show the same."""
    mirrored = sum(kind == "mirrored" for kind, _, _ in pairs)
    verdict: Verdict = "both-ways" if mirrored else "one-way" if pairs else "unknown"
    return Facing(verdict, mirrored, tuple(sorted(_fewer(pairs))), tuple(selfies))


def _fewer(pairs: Sequence[tuple[str, str, str]]) -> set[str]:
    """In each group of images that show the same: the smaller side; of two equal ones the one that comes later."""
    links: dict[str, list[tuple[str, bool]]] = {}
    for kind, first, second in pairs:
        links.setdefault(first, []).append((second, kind == "mirrored"))
        links.setdefault(second, []).append((first, kind == "mirrored"))
    sides: dict[str, bool] = {}
    fewer: set[str] = set()
    for start in links:
        if start in sides:
            continue
        sides[start] = False
        group = [start]
        for name in group:  # grows as it is walked through
            for other, turns in links[name]:
                if other not in sides:
                    sides[other] = sides[name] != turns
                    group.append(other)
        turned = [name for name in group if sides[name]]
        fewer.update(turned if 2 * len(turned) <= len(group) else (name for name in group if not sides[name]))
    return fewer
