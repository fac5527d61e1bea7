"""Imports peft and diffusers without bitsandbytes, which they would draw in although nothing of ours needs it.

With torch's compiler, which bitsandbytes draws in itself, that is a sixth of all that a start of the trainer imports.
An optimizer that is bitsandbytes' own imports it later.
"""

from __future__ import annotations

import importlib
import sys


def import_without(name: str, *packages: str) -> None:
    """Imports `packages` while `name` looks as if it were not installed; what is imported already stays."""
    if name in sys.modules:
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        for package in packages:
            importlib.import_module(package)
    finally:
        del sys.modules[name]


import_without("bitsandbytes", "peft", "diffusers")
