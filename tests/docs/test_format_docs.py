"""docs/formats.md is what the readers' tables say today."""

from __future__ import annotations

import pytest

from docs.pages import formats as format_docs
from launcher import formats
from launcher.formats.kohya_gui import keys


def test_every_format_is_on_it() -> None:
    assert set(format_docs.FORMATS) == set(formats.FORMATS) == set(format_docs.KINDS)


@pytest.mark.parametrize("name", format_docs.FORMATS)
def test_no_key_has_two_fates(name: str) -> None:
    found = format_docs.FORMATS[name]()
    assert not found.used & found.idle.keys()
    assert not found.refused.keys() & (found.used | found.idle.keys())


def test_every_key_of_the_form_is_counted() -> None:
    assert format_docs.FORMATS["kohya-gui"]().known == len(keys())
