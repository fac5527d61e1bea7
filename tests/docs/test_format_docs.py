"""docs/formats.md is what the readers' tables say today."""

from __future__ import annotations

import pytest

from docs.pages import formats as format_docs
from launcher import formats
from launcher.formats.kohya_gui import keys


def test_every_format_is_on_it() -> None:
    rows = format_docs.page().splitlines()
    assert [name for name in formats.readable() if not any(row.startswith(f"| `{name}` |") for row in rows)] == []


@pytest.mark.parametrize("name", formats.readable())
def test_no_key_has_two_fates(name: str) -> None:
    found = formats.FORMATS[name].part("keys")()
    assert not found.used & found.idle.keys()
    assert not found.refused.keys() & (found.used | found.idle.keys())


def test_every_key_of_the_form_is_counted() -> None:
    assert formats.FORMATS["kohya-gui"].part("keys")().known == len(keys())
