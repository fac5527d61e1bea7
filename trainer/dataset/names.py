"""File names that mean the same although they are written differently: in case, or in Unicode form."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable


def fold(name: str) -> str:
    """`name` without regard to case and Unicode form (macOS writes an umlaut as two characters)."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class Names:
    """The names of one folder (or of one archive), found as written or, failing that, by `fold`."""

    def __init__(self, names: Iterable[str]) -> None:
        self.exact = frozenset(names)
        self._folded: dict[str, list[str]] = {}
        for name in sorted(self.exact):
            self._folded.setdefault(fold(name), []).append(name)

    def __contains__(self, name: str) -> bool:
        return bool(self.like(name))

    def like(self, name: str) -> list[str]:
        """Names that mean `name`, the one to use first: written exactly so, else the first in order."""
        alike = self._folded.get(fold(name), [])
        return [name, *(other for other in alike if other != name)] if name in self.exact else list(alike)

    def find(self, name: str) -> str | None:
        """The name to use for `name`."""
        return next(iter(self.like(name)), None)


def names_in(folder: str | os.PathLike[str]) -> Names:
    """Everything directly in `folder`."""
    return Names(os.listdir(folder))
