"""`python -m trainer.output.lora_work`: what `kohyakit lora` starts, its wish as one JSON word."""

from __future__ import annotations

if __name__ == "__main__":
    from trainer.watch.early import hush_libraries, leave_on_signals

    leave_on_signals()
    hush_libraries()

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from schemas.files.documents import parse_json
from schemas.problems import ConfigError
from schemas.signals import interruptible, outlast_terminal
from schemas.terminal import say, say_document
from trainer.output import lora_tools
from trainer.output.lora_source import LoraSource
from trainer.output.lora_tools import SAVED, Made


def work(wish: Mapping[str, Any]) -> Made:
    """Does what `wish` says: {"do", "files", "output", "dtype"} and what belongs to the tool of that name."""
    output, dtype = Path(wish["output"]), SAVED.get(wish.get("dtype") or "")
    files = [Path(file) for file in wish["files"]]
    if wish["do"] == "extract":
        from trainer.output.checkpoints import Base, extract

        tuned, base = (Base(file) for file in files)
        return extract(tuned, base, output, rank=wish["rank"], conv_rank=wish["conv_rank"], dtype=dtype, watch=watch)
    sources = [LoraSource(file) for file in files]
    if wish["do"] == "merge":
        weighted = list(zip(sources, wish["weights"], strict=True))
        if wish["into"]:
            from trainer.output.checkpoints import Base, merge_into

            return merge_into(Base(Path(wish["into"])), weighted, output, watch=watch)
        return lora_tools.merge(weighted, output, rank=wish["rank"], dtype=dtype, watch=watch)
    if wish["do"] == "resize":
        return lora_tools.resize(
            sources[0], output, rank=wish["rank"], keep=wish["keep"], dtype=dtype, watch=watch
        )  # fmt: skip
    if wish["to"] == "kohya":
        return lora_tools.to_kohya(sources[0], output, dtype=dtype, watch=watch)
    return lora_tools.to_diffusers(sources[0], output, dtype=dtype, peft=wish["to"] == "peft", watch=watch)


def watch(items: Sequence[Any], label: str) -> Iterable[Any]:
    """The items with progress on stderr."""
    return lora_tools.watched(items, label, lambda line: say(line, err=True))


def tell(made: Made) -> None:
    """What was made, for people."""
    ranks = ", ".join(f"{count} of rank {rank}" for rank, count in made.ranks.items())
    say(f"{made.file}: {made.modules} modules, {made.dtype}{f'; {ranks}' if ranks else ''}")
    if made.kept_share:
        shares = made.kept_share
        say(f"  kept {shares['whole']:.2%} of the Frobenius norm, of a single module at least {shares['lowest']:.2%}")
    for note in made.notes:
        say(f"  note: {note}")


def main(words: Sequence[str] | None = None) -> int:
    wish = parse_json((sys.argv[1:] if words is None else words)[0])
    try:
        made = work(wish)
    except ConfigError as fault:
        for problem in fault.problems:
            first, *rest = problem.lines()
            for line in (f"{problem.severity}: {first}", *rest):
                say(line, err=True)
        if wish["json"]:
            say_document({"ok": False, "problems": [problem.as_json() for problem in fault.problems]})
        return 1
    except OSError as fault:
        return _failed(f"{wish['output']} was not written: {fault}", wish)
    except MemoryError:
        return _failed("there is not enough memory for the largest tensor", wish)
    except KeyboardInterrupt:
        say("interrupted; nothing was written", err=True)
        return 130
    if wish["json"]:
        say_document(made.as_json())
    else:
        tell(made)
    return 0


def _failed(must: str, wish: Mapping[str, Any]) -> int:
    say(f"error: {must}", err=True)
    if wish["json"]:
        problem = {"severity": "error", "code": "not-written", "key": None, "line": None, "got": None, "must": must,
                   "fix": "check the room on the disk"}  # fmt: skip
        say_document({"ok": False, "problems": [problem]})
    return 3


if __name__ == "__main__":
    outlast_terminal()
    with interruptible():
        sys.exit(main())
