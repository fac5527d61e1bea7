"""Findings of `validate` as other tools show them: SARIF 2.1.0 for code scanning, commands of a GitHub workflow.

SARIF: https://docs.oasis-open.org/sarif/sarif/v2.1.0/ ; workflow commands: the documentation of GitHub Actions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

LEVELS = {"error": "error", "warning": "warning", "note": "note"}
COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}
# What a machine lacks is no fault of a preset that is published: a linter's machine has neither models nor packages.
OF_THE_MACHINE = ("missing-package", "not-downloaded", "no-file", "missing-option")
SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
ESCAPES = {"%": "%25", "\r": "%0D", "\n": "%0A"}
IN_PROPERTIES = {**ESCAPES, ":": "%3A", ",": "%2C"}


def sarif(files: Sequence[Mapping[str, Any]], version: str) -> dict[str, Any]:
    """The SARIF document of the `files` of `validate --json`."""
    found = [(document["file"], problem) for document in files for problem in of_the_file(document)]
    codes = list(dict.fromkeys(problem["code"] for _, problem in found))
    rules = [{"id": code, "name": code, "shortDescription": {"text": code.replace("-", " ")}} for code in codes]
    driver = {"name": "kohyakit", "version": version, "rules": rules}
    results = [_result(file, problem, codes.index(problem["code"])) for file, problem in found]
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def of_the_file(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Its findings without those about this machine, errors excepted."""
    return [one for one in document["problems"] if one["severity"] == "error" or one["code"] not in OF_THE_MACHINE]


def _result(file: str, problem: Mapping[str, Any], rule: int) -> dict[str, Any]:
    place: dict[str, Any] = {"artifactLocation": {"uri": _address(file)}}
    if problem["line"]:
        place["region"] = {"startLine": problem["line"]}
    return {
        "ruleId": problem["code"], "ruleIndex": rule, "level": LEVELS[problem["severity"]],
        "message": {"text": sentence(problem)}, "locations": [{"physicalLocation": place}],
    }  # fmt: skip


def _address(file: str) -> str:
    """A path as a relative address, or a file: one where it is absolute."""
    path = PurePath(file)
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())


def sentence(problem: Mapping[str, Any]) -> str:
    """Key, what is wrong, what was got, the fix, on one line."""
    words = [f"{problem['key']}:" if problem["key"] else "", str(problem["must"])]
    words += [f"(got {problem['got']!r})"] if problem["got"] is not None else []
    text = " ".join(word for word in words if word)
    return f"{text}. Fix: {problem['fix']}" if problem["fix"] else text


def github(files: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One workflow command a finding; GitHub shows it at its line of the file."""
    for document in files:
        for problem in of_the_file(document):
            facts = {"file": document["file"], "line": problem["line"], "title": f"kohyakit {problem['code']}"}
            said = ",".join(f"{name}={_escaped(value, IN_PROPERTIES)}" for name, value in facts.items() if value)
            yield f"::{COMMANDS[problem['severity']]} {said}::{_escaped(sentence(problem), ESCAPES)}"


def _escaped(value: object, escapes: Mapping[str, str]) -> str:
    return "".join(escapes.get(character, character) for character in str(value))
