"""Writes docs/arguments.md, what became of each of the reference's arguments: `python docs/write_arguments.py`."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, Python looks in docs/ only

from schemas.config import GROUPS, Option, table  # noqa: E402
from schemas.rules import UNSUPPORTED, WITHOUT_EFFECT  # noqa: E402

PAGE = ROOT / "docs" / "arguments.md"
HEAD = """# The reference's arguments

All {count} arguments of sd-scripts' `train_network.py` and `sdxl_train_network.py`, and what became of them here.
Written by `python docs/write_arguments.py` from the option table, the trainer's source and the tests; what each one
does is in [options.md](options.md).

- **{implemented} implemented**: the module that reads it, and a test that covers it.
  [tests/trainer/test_arguments.py](../tests/trainer/test_arguments.py) trains with them and sees each one being read.
- **{refused} refused** when set: the run does not start, and the reason is said. Nothing is dropped in silence.
- **{idle} without effect**, said by a note: what they would bring is there anyway, or they belong to a refused one.
"""
# The answer to these is what happens anyway.
ALWAYS = {"sdpa": "always on: PyTorch's attention is used unless `xformers` is asked for"}
RULES_TEST = "schemas/rules/test_rules.py"
RECORDS = ("trainer/output/metadata.py", "trainer/plan/memory.py")  # they describe a run; the doing is elsewhere


def page() -> str:
    """The whole page as Markdown."""
    options = [option for option in table().values() if not option.kit]
    states = [state(option.name) for option in options]
    counts = {word: states.count(word) for word in ("implemented", "refused", "idle")}
    sections = [_section(group, [option for option in options if option.group is group]) for group in GROUPS]
    return "\n".join([HEAD.format(count=len(options), **counts), *filter(None, sections)])


def state(name: str) -> str:
    """implemented, refused or idle."""
    return "refused" if name in UNSUPPORTED else "idle" if name in WITHOUT_EFFECT else "implemented"


def _section(group: type, options: list[Option]) -> str:
    if not options:
        return ""
    rows = "\n".join(_row(option.name) for option in options)
    title = (group.__doc__ or "").rstrip(".")
    return f"## {title}\n\n| argument | here | read by | covered by |\n|---|---|---|---|\n{rows}\n"


def _row(name: str) -> str:
    said, read, test = "implemented", readers(name)[:2], tests(name)[:1]
    if name in ALWAYS:
        said, read = ALWAYS[name], []
    elif name in UNSUPPORTED:
        said, read, test = f"refused: {UNSUPPORTED[name]}", [], [RULES_TEST]
    elif name in WITHOUT_EFFECT:
        said, read, test = f"no effect: {WITHOUT_EFFECT[name]}", [], [RULES_TEST]
    return f"| `{name}` | {said} | {_links(read, '')} | {_links(test, 'tests')} |"


def _links(paths: list[str], folder: str) -> str:
    return ", ".join(f"[{path.removeprefix('trainer/')}]({Path('..') / folder / path})" for path in paths)


# Who reads an option


def readers(name: str) -> list[str]:
    """Modules of the trainer that read an option and act on it; as attribute, else by its name as text."""
    found = [path for path, names, _ in _modules() if name in names]
    found = found or [path for path, _, texts in _modules() if name in texts]
    acting = [path for path in found if path not in RECORDS]
    return acting or found


@functools.cache
def _modules() -> tuple[tuple[str, frozenset[str], frozenset[str]], ...]:
    """(path, attributes loaded, names in text) of every module of the trainer; the tensor-free parts last."""
    found = []
    for path in sorted((ROOT / "trainer").rglob("*.py"), key=lambda path: ("plan" in path.parts, path)):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        loaded = {node.attr for node in nodes if isinstance(node, ast.Attribute) and _is_config(node.value)}
        texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        joined = {prefix + text for prefix in _prefixes(nodes) for text in texts}
        found.append((path.relative_to(ROOT).as_posix(), frozenset(loaded), frozenset(texts | joined)))
    return tuple(found)


def _is_config(node: ast.expr) -> bool:
    """Whether an expression is called as configs, option groups and subsets are called here."""
    return ast.unparse(node).rpartition(".")[2].removeprefix("_") in ("config", "options", "read", "subset", "spec")


def _prefixes(nodes: list[ast.AST]) -> Iterator[str]:
    """The beginnings of names put together in f-strings, such as metadata_ in f"metadata_{field}"."""
    for node in nodes:
        if isinstance(node, ast.JoinedStr) and len(node.values) == 2 and isinstance(node.values[0], ast.Constant):
            if str(node.values[0].value).endswith("_"):
                yield str(node.values[0].value)


# Which test covers it

USE = re.compile(r"""(?<!\w)(\w+)(?=['"]?\s*[=:\],)])|--(\w+)|\.(\w+)""")  # name=, "name":, --name, .name
GOLDEN = re.compile(r'"(\w+)"|--(\w+)')


def tests(name: str) -> list[str]:
    """Test files that use an option: those of a module that reads it first, then the trainer's, then by use."""
    mirrors = {f"{Path(path).parent}/test_{Path(path).stem}.py" for path in readers(name)}
    scores = {}
    for path, used, golden in _test_files():
        uses = used[name] + 2 * (name in golden)
        if uses:
            weighs = path != "trainer/plan/test_memory.py"  # estimates follow from options; they do not carry them out
            scores[path] = (path in mirrors, path.startswith("trainer/"), weighs, min(uses, 9))
    return sorted(scores, key=lambda path: (*(-mark for mark in scores[path]), path))


@functools.cache
def _test_files() -> tuple[tuple[str, Counter[str], frozenset[str]], ...]:
    """(path, names it uses and how often, names in the golden files it reads) of every test file."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        files = set(re.findall(r"\b\w+\.json\b", text)) - ({"metadata.json"} if path.stem != "test_metadata" else set())
        golden = frozenset[str]().union(*(_golden_names(file) for file in files))
        found.append((path.relative_to(ROOT / "tests").as_posix(), Counter(_words(USE, text)), golden))
    return tuple(found)


@functools.cache
def _golden_names(file: str) -> frozenset[str]:
    path = ROOT / "tests" / "golden" / file
    return frozenset(_words(GOLDEN, path.read_text(encoding="utf-8")) if path.is_file() else ())


def _words(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    return ("".join(groups) for groups in pattern.findall(text))


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
