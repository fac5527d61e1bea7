"""The house rules as tests: who imports whom, how long things are, what is generated, what must not be in the tree."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from docs import generate
from schemas.config import GROUPS, table

ROOT = Path(__file__).parent.parent
OURS = ("schemas", "launcher", "trainer", "presets", "benchmarks")
SOURCES = sorted(path for top in OURS for path in (ROOT / top).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

HEAVY = {"torch", "accelerate", "diffusers", "transformers", "peft", "bitsandbytes", "lycoris", "safetensors", "numpy"}
LIGHT = ("schemas", "launcher", "trainer.dataset", "trainer.plan")

# Budgets
LONGEST_FILE = 450
LONGER_FILES = {
    "schemas/options.py": 700,  # the option table
    # To be cut when they are next touched.
    "launcher/formats/command_line.py": 470,
    "launcher/photos/check.py": 465,
    "launcher/run/resume.py": 485,
    "trainer/output/results.py": 470,
}
# They may only fall: a clean-up lowers a number, a new ability raises that of its own folder and says so in its commit.
LINES = {
    "launcher": 229,
    "launcher/about": 1198,
    "launcher/check": 2409,
    "launcher/cluster": 680,
    "launcher/commands": 2870,
    "launcher/formats": 7949,
    "launcher/photos": 2461,
    "launcher/queue": 1069,
    "launcher/report": 2085,
    "launcher/run": 2590,
    "launcher/sweep": 918,
    "launcher/ui": 4365,
    "schemas": 3935,
    "schemas/files": 2340,
    "schemas/rules": 1803,
    "trainer": 1005,
    "trainer/adapters": 2175,
    "trainer/captioning": 724,
    "trainer/comparison": 524,
    "trainer/dataset": 2993,
    "trainer/families": 1750,
    "trainer/input": 909,
    "trainer/learning": 1003,
    "trainer/likeness": 346,
    "trainer/masking": 209,
    "trainer/output": 3334,
    "trainer/plan": 1697,
    "trainer/toy": 622,
    "trainer/watch": 877,
}
LONGEST_FUNCTION = 60
LONGER_FUNCTIONS = {("trainer/loop.py", "train"): 120}  # the loop, read aloud from top to bottom
MOST_ARGUMENTS = 8


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name: str, *tops: str) -> bool:
    return any(name == top or name.startswith(f"{top}.") for top in tops)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, also of those inside functions; relative ones resolved."""
    package = module(path) if path.name == "__init__.py" else module(path).rpartition(".")[0]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            yield node.lineno, ".".join([*base, node.module or ""]).strip(".")


def typing_only(path: Path) -> set[int]:
    """Lines under `if TYPE_CHECKING:`."""
    lines: set[int] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def offences(inside: tuple[str, ...], forbidden: set[str] | tuple[str, ...], but: tuple[str, ...] = ()) -> list[str]:
    found = []
    for path in SOURCES:
        if within(module(path), *inside) and not (but and within(module(path), *but)):
            skip = typing_only(path)
            found += [
                f"{path.relative_to(ROOT)}:{line} imports {name}"
                for line, name in imports(path)
                if within(name, *forbidden) and line not in skip
            ]
    return found


# Who imports whom


def test_schemas_imports_the_standard_library_only() -> None:
    allowed = {*sys.stdlib_module_names, "schemas", "toml", "jsonschema"}
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in SOURCES
        if within(module(path), "schemas")
        for line, name in imports(path)
        if name.partition(".")[0] not in allowed
    ]
    assert found == []


def test_toml_and_jsonschema_are_imported_late_in_schemas() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        if within(module(path), "schemas")
        for node in tree(path).body
        if isinstance(node, (ast.Import, ast.ImportFrom)) and re.search(r"\b(toml|jsonschema)\b", ast.unparse(node))
    ]
    assert found == []


def test_light_parts_never_import_tensor_libraries() -> None:
    assert offences(LIGHT, HEAVY) == []


def test_trainer_never_imports_launcher() -> None:
    assert offences(("trainer", "schemas"), ("launcher",)) == []


def test_launcher_knows_of_the_trainer_only_data_and_plan() -> None:
    allowed = ("trainer.dataset", "trainer.plan", "trainer.toy.world")
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in SOURCES
        if within(module(path), "launcher")
        for line, name in imports(path)
        if within(name, "trainer") and not within(name, *allowed)
    ]
    assert found == []


def test_dataset_and_plan_know_no_other_part_of_the_trainer() -> None:
    allowed = ("trainer.dataset", "trainer.plan")
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in SOURCES
        if within(module(path), *allowed)
        for line, name in imports(path)
        if within(name, "trainer") and not within(name, *allowed)
    ]
    assert found == []


# What each part of the trainer may know, beside schemas, trainer.dataset, trainer.plan and itself.
PARTS = {
    "adapters": {"families"},
    "captioning": {"input", "output", "watch"},
    "families": {"learning", "output"},  # a noise process takes its formulas and samplers from there
    "input": {"families"},
    "learning": {"adapters", "families"},
    "output": {"adapters", "families", "watch"},
    "toy": {"adapters", "families", "input", "output"},
    "watch": {"adapters", "input", "output"},
}


def test_only_the_loop_knows_all_parts() -> None:
    found = []
    for path in SOURCES:
        name = module(path)
        part = name.removeprefix("trainer.").partition(".")[0]
        if not name.startswith("trainer.") or part not in PARTS:
            continue
        others = {f"trainer.{other}" for other in PARTS if other != part and other not in PARTS[part]}
        upstairs = {"trainer.loop", "trainer.step", "trainer.setup", "trainer.__main__"}
        skip = typing_only(path)
        found += [
            f"{name} imports {other}"
            for line, other in imports(path)
            if line not in skip and within(other, *others, *upstairs)
        ]
    assert found == []


def module_level(path: Path) -> Iterator[str]:
    """What is imported when the module is, `from package import module` as that module."""
    names = {module(path): path for path in SOURCES}
    pending: list[ast.stmt] = list(tree(path).body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.If, ast.Try)) and ast.unparse(getattr(node, "test", node)) != "TYPE_CHECKING":
            pending += [one for one in ast.iter_child_nodes(node) if isinstance(one, ast.stmt)]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in names else str(node.module)


def test_no_module_imports_itself_by_a_circle() -> None:
    graph = {module(path): set(module_level(path)) for path in SOURCES}
    done: set[str] = set()

    def circle(name: str, way: tuple[str, ...]) -> list[str] | None:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done or name not in graph:
            return None
        for other in sorted(graph[name]):
            # A package's own list of names stands above its modules; they may name the package for a sibling.
            if not name.startswith(f"{other}.") and (found := circle(other, (*way, name))):
                return found
        done.add(name)
        return None

    assert [found for name in sorted(graph) if (found := circle(name, ()))] == []


def test_nothing_ours_imports_tests_or_benchmarks() -> None:
    assert offences(("schemas", "launcher", "trainer", "presets"), ("tests", "benchmarks")) == []


@pytest.mark.parametrize("words", ["launcher.cli", "schemas", "trainer.dataset.files", "trainer.plan.steps"])
def test_light_modules_load_no_tensor_library(words: str) -> None:
    code = f"import sys, json, {words}; print(json.dumps(sorted({{n.partition('.')[0] for n in sys.modules}})))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True))
    assert HEAVY & set(loaded) == set()


def test_images_are_opened_at_one_place_only() -> None:
    """With Pillow's full list of plug-ins, opening an image may start a program."""
    found = {str(path.relative_to(ROOT)) for path in (*SOURCES, *(ROOT / "docs").glob("*.py")) if _opens_images(path)}
    assert found == {"trainer/dataset/images.py"}


def _opens_images(path: Path) -> bool:
    """Whether a file calls Pillow's open, whatever name it gave the module, or another reader of images."""
    names = {"Image", "pillow", "PIL.Image"}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module == "PIL":
            names |= {alias.asname or alias.name for alias in node.names if alias.name == "Image"}
        if isinstance(node, ast.ImportFrom) and node.module == "PIL.Image" and "open" in [a.name for a in node.names]:
            return True
    readers = {*(f"{name}.open" for name in names), "ImageFile.Parser", "cv2.imread", "imageio.imread"}
    return any(isinstance(node, ast.Attribute) and ast.unparse(node) in readers for node in ast.walk(tree(path)))


# How long things are


def test_files_stay_short() -> None:
    lines = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in SOURCES}
    assert {name: n for name, n in lines.items() if n > LONGER_FILES.get(name, LONGEST_FILE)} == {}


def lines_by_folder() -> dict[str, int]:
    """Lines of source of every package and of the folders within it."""
    found: dict[str, int] = defaultdict(int)
    for path in SOURCES:
        parts = path.relative_to(ROOT).parts
        if parts[0] in ("schemas", "launcher", "trainer"):
            found["/".join(parts[:2]) if len(parts) > 2 else parts[0]] += path.read_text(encoding="utf-8").count("\n")
    return dict(found)


def test_lines_of_each_folder_only_fall() -> None:
    found = lines_by_folder()
    assert {name: n for name, n in found.items() if n > LINES.get(name, 0)} == {}
    assert sorted(LINES.keys() - found.keys()) == []


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_functions_stay_short() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines"
        for path in SOURCES
        for node in functions(path)
        if (length := (node.end_lineno or 0) - node.lineno + 1)
        > LONGER_FUNCTIONS.get((str(path.relative_to(ROOT)), node.name), LONGEST_FUNCTION)
    ]
    assert found == []


def test_functions_take_few_arguments() -> None:
    """Commands excepted: there an argument is a flag."""
    found = []
    for path in SOURCES:
        for node in functions(path):
            count = len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])
            is_command = any(
                "command" in ast.unparse(one) or "click." in ast.unparse(one) for one in node.decorator_list
            )
            is_option = node.name == "opt"  # the vocabulary of the option table
            if count > MOST_ARGUMENTS and not is_command and not is_option:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} takes {count}")
    assert found == []


def test_names_say_something() -> None:
    vague = {"util", "utils", "common", "helper", "helpers", "core", "manager", "misc"}
    assert [str(path) for path in SOURCES if vague & set(re.split(r"[/._]", str(path.relative_to(ROOT))))] == []


def test_every_module_says_what_it_is_for() -> None:
    assert [str(path.relative_to(ROOT)) for path in SOURCES if not ast.get_docstring(tree(path))] == []


# Options and generated files


def test_every_option_has_one_sentence() -> None:
    sentence = re.compile(r"\w(?:(?![.] [A-Z]).){8,}[.]")  # ends with a full stop, and has none before
    assert [name for name, option in table().items() if not sentence.fullmatch(option.doc)] == []


def test_no_option_stands_in_two_groups() -> None:
    names = [name for group in GROUPS for name in group.__annotations__]
    assert len(names) == len(set(names)) == len(table())


def test_generated_pages_are_fresh() -> None:
    assert generate.stale(generate.generated()) == [], "run: python docs/generate.py"


def test_the_check_of_generated_pages_tells_what_is_stale(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(generate, "generated", lambda: {"README.md": "else", "no/such.md": "new"})
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "README.md is stale: run python docs/generate.py",
        "no/such.md is stale: run python docs/generate.py",
    ]
    assert generate.main(["--chek"]) == 2


def test_architecture_names_every_package_and_page() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    packages = {path.parent.relative_to(ROOT).as_posix() for path in SOURCES if path.name == "__init__.py"}
    names = {f"{package.rpartition('/')[2]}/" for package in packages}
    names |= {path.name for top in OURS for path in (ROOT / top).glob("*.py") if path.name != "__init__.py"}
    names |= {path.name for path in (ROOT / "docs").glob("*.md")}
    assert sorted(name for name in names if name not in page) == []


def test_readme_is_short_and_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 200
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert sorted(name for name in pages if f"(docs/{name})" not in readme) == []


def test_links_in_the_documents_lead_somewhere() -> None:
    broken = []
    for page in [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if not link.startswith("http") and not (page.parent / link).exists():
                broken.append(f"{page.name}: {link}")
    assert broken == []


CITED = re.compile(
    r"(format notes,? |GUI notes,? )?sections? (\d+(?:\.\d+)*(?:(?:, | and | to )\d+(?:\.\d+)*)*)", re.IGNORECASE
)
TRAPS = re.compile(r"\btraps? (T\d+(?:(?:, | and )T\d+)*)", re.IGNORECASE)


def cited(text: str) -> set[str]:
    """What a text refers to in docs/reference-behaviour.md: "7.4", "format notes 10", "T27"."""
    found = {number for match in TRAPS.finditer(text) for number in re.findall(r"T\d+", match[1])}
    for match in CITED.finditer(text):
        notes = (match[1] or "").strip(" ,")
        found |= {f"{notes} {number}".strip() for number in re.findall(r"\d+(?:\.\d+)*", match[2])}
    return found


def test_what_is_cited_of_the_reference_can_be_looked_up() -> None:
    page = (ROOT / "docs" / "reference-behaviour.md").read_text(encoding="utf-8")
    anchors = set(re.findall(r"^#{3,4} ((?:format notes |GUI notes )?\d+(?:\.\d+)*)\b", page, re.M))
    anchors |= set(re.findall(r"^- \*\*(T\d+)\*\* ", page, re.M))
    here = Path(__file__)
    texts = {path: path.read_text(encoding="utf-8") for path in [*SOURCES, *TESTS] if path != here}
    missing = {str(path.relative_to(ROOT)): sorted(cited(text) - anchors) for path, text in texts.items()}
    assert {path: names for path, names in missing.items() if names} == {}
    assert len(set().union(*map(cited, texts.values()))) > 60


def test_citations_are_found() -> None:
    assert cited("reference sections 7.4 and 7.10, traps T5, T19") == {"7.4", "7.10", "T5", "T19"}
    assert cited("format notes sections 1, 9: Trap T2") == {"format notes 1", "format notes 9", "T2"}
    assert cited("GUI notes, section 2.2") == {"GUI notes 2.2"}


# The doors to the world outside


# Files that open files otherwise than through schemas.files.textfile, and why they may.
OPENING = {
    "schemas/files/textfile.py": "the door",
    "schemas/files/run_folder.py": "checksums of states that the run itself wrote",
    "schemas/files/run_lock.py": "the lock",
    "schemas/files/writing.py": "writes; the system's own files",
    "schemas/files/pickles.py": "members of a zip that came through the door",
    "launcher/check/machine.py": "the system's own files",
    "launcher/queue/runner.py": "writes the logs of runs",
    "launcher/run/spill.py": "the log of the run that is under way, which grows",
    "launcher/run/record.py": "states that the run itself wrote; images",
    "launcher/formats/recognise.py": "our own table",
    "launcher/formats/kohya_gui/table.py": "our own table",
    "launcher/photos/source.py": "images",
    "launcher/cli.py": "the null device",
    "launcher/ui/asking.py": "the output of a process that it starts",
    "launcher/ui/runs.py": "likewise",
    "launcher/ui/start.py": "writes what is sent to it",
    "trainer/dataset/clip_text.py": "our own table",
    "trainer/dataset/images.py": "the door of images",
    "trainer/watch/signals.py": "the null device",
    "trainer/captioning/write.py": "captions",
    "trainer/captioning/tagger.py": "the tag list of a model",
    "trainer/captioning/endpoint.py": "the answer of a server, bounded",
    "trainer/input/cache_files.py": "writes; marks of images and models that have been read before",
    "trainer/output/states.py": "states that the run itself wrote",
    "trainer/watch/report.py": "writes the log",
    "trainer/output/results.py": "what the run itself has written",
    "trainer/output/lora_file.py": "writes, and hashes of models that have been read before",
    "trainer/output/read_back.py": "what the run itself has written",
    "trainer/adapters/plugin.py": "tensors of a file whose header has been read",
    "trainer/families/single_file.py": "tensors of a file whose header has been read",
    "trainer/families/architecture.py": "our own table",
    "trainer/families/random_checkpoint.py": "writes",
    "trainer/toy/judge.py": "our own weights",
}
OPENERS = {"open", "read_text", "read_bytes", "load_file", "safe_open"}
PARSERS = {"json.load", "json.loads", "tomllib.load", "tomllib.loads"}
# Files that parse JSON themselves, and why they may.
PARSING = {
    "schemas/files/documents.py": "the door",
    "launcher/formats/recognise.py": "our own table",
    "launcher/formats/kohya_gui/table.py": "our own table",
    "launcher/commands/configs.py": "our own presets",
    "launcher/commands/demo_sheet.py": "what our own process says",
    "launcher/run/spill.py": "the log of the run that is under way",
    "trainer/watch/connection.py": "what the other processes of the run say",
    "trainer/captioning/write.py": "a journal that the run itself wrote",
    "trainer/families/architecture.py": "our own table",
}
PRINTING = {"schemas/terminal.py": "the door"}


def calls(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every call."""
    yield from ((node.lineno, ast.unparse(node.func)) for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def outside_the_door(allowed: dict[str, str], is_one: Callable[[str], bool]) -> list[str]:
    """Calls in what we ship (benchmarks are tools of our own) that belong into a door."""
    return [
        f"{name}:{line} calls {called}"
        for path in SOURCES
        if (name := str(path.relative_to(ROOT))) not in allowed and not name.startswith("benchmarks/")
        for line, called in calls(path)
        if is_one(called)
    ]


def _opens(called: str) -> bool:
    owner, _, name = called.rpartition(".")
    return (
        name in OPENERS
        and owner not in ("textfile", "formats", "webbrowser")
        and (bool(owner) or not name.startswith("read_"))
    )


def test_files_are_opened_by_one_door() -> None:
    """A name in a stranger's config may lead to a pipe, a device or a file without end."""
    assert outside_the_door(OPENING, _opens) == []


def test_json_and_toml_are_parsed_by_one_door() -> None:
    """The standard parsers end in RecursionError on deep nesting and pass on halves of surrogate pairs."""
    assert outside_the_door(PARSING, lambda called: called in PARSERS) == []


def test_the_terminal_is_written_to_by_one_door() -> None:
    """What a file says must not move the cursor, hide or forge a line."""
    writes = re.compile(
        r"(?:print|traceback[.]print_\w+|click[.](?:echo|secho|echo_via_pager)|sys[.]std(?:out|err)[.](?:buffer[.])?write\w*)"
    )
    assert outside_the_door(PRINTING, lambda called: writes.fullmatch(called) is not None) == []


def test_the_lists_of_exceptions_name_files_that_need_them() -> None:
    """A file that has gone, or has mended its ways, leaves the list."""
    parses: Callable[[str], bool] = lambda called: called in PARSERS  # noqa: E731
    for allowed, is_one in ((OPENING, _opens), (PARSING, parses)):
        assert [name for name in allowed if not any(is_one(called) for _, called in calls(ROOT / name))] == []


# What must not be in the tree


def shipped() -> Iterator[Path]:
    """The files that git would keep: tracked, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    yield from (ROOT / name for name in listed if (ROOT / name).is_file())


def test_no_paths_of_one_machine_and_no_registry_hosts() -> None:
    words = ["/" + "work/", "/" + "tmp/bash", "pypi" + ".org", "python" + "hosted", "/" + "opt/wheels", "/" + "root/"]
    found = []
    for path in shipped():
        content = path.read_bytes()
        if b"\0" not in content[:1000]:
            text = content.decode("utf-8", "replace")
            found += [f"{path.relative_to(ROOT)}: {word}" for word in words if word in text]
    assert found == []


def test_no_unfinished_work() -> None:
    marks = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
    assert [str(path) for path in SOURCES if marks.search(path.read_text(encoding="utf-8"))] == []


# Where tests may be skipped, and why: what they need is no Python package, so that pip cannot bring it.
SKIPPING = {"tests/browser/conftest.py": "a browser; .ci/run installs one"}


def test_no_test_is_skipped() -> None:
    words = re.compile(r"pytest\.(?:skip|xfail|importorskip)|mark\.(?:skip|skipif|xfail)\b")
    found = {str(path.relative_to(ROOT)) for path in TESTS if words.search(path.read_text(encoding="utf-8"))}
    assert found - {str(Path(__file__).relative_to(ROOT))} == set(SKIPPING)


def test_no_large_files() -> None:
    """The toy models, which the demo and the learning tests need, are at most about 12 MB each."""
    limits = {path: 12_500_000 if path.match("trainer/toy/*.safetensors") else 2_000_000 for path in shipped()}
    assert [str(path) for path, limit in limits.items() if path.stat().st_size > limit] == []
