"""What is installed, from what, and that README's two commands are the ones that CI runs."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]


def names(requirements: list[str]) -> list[str]:
    return [re.split(r"[<>=!~;\[ ]", one)[0] for one in requirements]


def command(mark: str) -> str:
    """The one line under a `<!-- command: MARK -->` in README.md."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- command: {mark} -->\n```\n(.*)\n```\n", readme)
    assert found, mark
    return found[1]


def packages() -> list[str]:
    return find_packages(str(ROOT), include=PROJECT["tool"]["setuptools"]["packages"]["find"]["include"])


def test_readme_commands_are_one_line_each() -> None:
    assert command("demo") == "pip install . && kohyakit demo"
    assert command("test") == 'pip install -e ".[test]" && pytest -n auto'


def test_every_source_folder_is_a_package() -> None:
    """A folder without __init__.py would be missing from the wheel."""
    folders = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for top in ("launcher", "trainer", "schemas", "presets")
        for path in (ROOT / top).rglob("*.py")
    }
    assert folders == set(packages())


def test_every_data_file_is_packaged() -> None:
    """Every file under the packages that is not Python matches a pattern of package-data."""
    taken = {
        file
        for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for file in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = {
        path
        for top in ("launcher", "trainer", "schemas", "presets")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert sorted(files - taken) == []


def test_every_dependency_has_its_reason() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    plain = set(re.findall(r"^\| `([\w-]+)` \| [^`]", page, re.M))
    extra = set(re.findall(r"^\| `([\w-]+)` \| `([\w-]+)` \|", page, re.M))
    assert plain == set(names(PROJECT["project"]["dependencies"]))
    assert extra == {(name, one) for name, group in EXTRAS.items() for one in names(group) if one != "kohyakit"}


def test_every_dependency_is_installed() -> None:
    """The extra `test` brings all the others that tests need."""
    tested = [one for extra in ("test", "optimizers", "lycoris") for one in EXTRAS[extra]]
    for name in names([*PROJECT["project"]["dependencies"], *tested]):
        assert importlib.metadata.version(name)


def test_command_leads_to_a_function() -> None:
    entry = PROJECT["project"]["scripts"]["kohyakit"]
    code = f"import {entry.partition(':')[0]} as m; assert callable(m.{entry.partition(':')[2]})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_version_stands_in_the_changelog() -> None:
    assert f"## [{PROJECT['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_ci_takes_its_command_from_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "readme test" in script
    assert "pip install" not in script


@pytest.mark.slow
def test_wheel_holds_every_package_and_data_file(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"  # building leaves its own folders behind
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests"))
    words = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(copy)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    tops = ("launcher", "trainer", "schemas", "presets")
    files = {
        path.relative_to(ROOT).as_posix()
        for top in tops
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert files <= held
    assert {name.partition("/")[0] for name in held if not name.startswith("kohyakit-")} == set(tops)
