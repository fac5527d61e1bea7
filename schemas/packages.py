"""Packages whose classes a config may name: what installs each, and whether a class of it may be imported."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from schemas.problems import Problem
from schemas.terminal import shell_word

EXTRA = '"kohyakit[optimizers]"'


@dataclass(frozen=True)
class Package:
    """`pip` installs it; of one that holds much besides, `only` this module may be named without trust.

    `own_rate`: its optimizers find the learning rate themselves and want about 1.
    """

    pip: str
    only: str = ""
    own_rate: bool = False


PACKAGES: dict[str, Package] = {
    "torch": Package("torch", only="torch.optim"),
    "transformers": Package("transformers", only="transformers.optimization"),
    "bitsandbytes": Package(EXTRA),
    "lion_pytorch": Package(EXTRA),
    "dadaptation": Package(EXTRA, own_rate=True),
    "prodigyopt": Package(EXTRA, own_rate=True),
    "schedulefree": Package(EXTRA),
    "prodigyplus": Package("prodigy-plus-schedule-free", own_rate=True),
    "pytorch_optimizer": Package(EXTRA),
    "lycoris": Package("lycoris-lora"),
}


class Trusting(Protocol):
    """The part of a config that says which code it may run."""

    @property
    def trust(self) -> tuple[str, ...]: ...


def trusted(config: Trusting, dotted: str) -> bool:
    """Whether `dotted`, or a module above it, is named in `trust`."""
    return any(dotted == name or dotted.startswith(f"{name}.") for name in config.trust)


@functools.cache
def installed(package: str) -> bool:
    """Whether a top-level package can be imported; nothing is imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def may_import(config: Trusting, dotted: str) -> bool:
    """Whether a dotted class lies in a known package, or is trusted."""
    name = dotted.partition(".")[0]
    package = PACKAGES.get(name)
    known = package is not None and dotted.startswith(f"{package.only or name}.")
    return known or trusted(config, dotted)


def untrusted(dotted: str, key: str, must: str, fix: str = "") -> Problem:
    """The error that a config names a module which would run its code."""
    named = all(part.isidentifier() for part in dotted.split("."))
    ways = [fix] if fix else []
    ways += [f"if you trust it: --trust {shell_word(dotted)}"] if named else []
    return Problem(code="untrusted-module", key=key, got=dotted, must=must, fix=", or ".join(ways))


def missing_package(package: str, key: str, got: Any, why: str = "which is not installed") -> Problem:
    """The error that an option needs a package which cannot be imported here."""
    pip = PACKAGES[package].pip if package in PACKAGES else package
    must = f"needs the package {package}, {why}"
    return Problem(code="missing-package", key=key, got=got, must=must, fix=f"pip install {pip}")


def needs(package: str, key: str, got: Any) -> Iterator[Problem]:
    """The same where the package is not installed."""
    if not installed(package):
        yield missing_package(package, key, got)
