"""dataset caption, dataset tags: the words of the commands, and what they print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.commands import command, print_json
from schemas.problems import error
from schemas.terminal import say

if TYPE_CHECKING:
    from launcher.photos.tags import Captions, Change, Edit

ACTIONS = ("list", "add", "remove", "replace", "dedupe", "sort", "undo")
SHOWN = 6  # changes that are shown where they are made; --dry-run shows all
# How many words an action takes: (least, most), None for any number, and what they are.
WORDS: dict[str, tuple[int, int | None, str]] = {
    "list": (0, None, "[TAG]..."),
    "add": (1, None, "TAG..."),
    "remove": (1, None, "TAG..."),
    "replace": (2, None, "OLD NEW..."),
    "dedupe": (0, 0, ""),
    "sort": (0, 0, ""),
    "undo": (0, 0, ""),
}


@command("tags")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("action", type=click.Choice(ACTIONS))
@click.argument("words", nargs=-1, metavar="[TAG]...")
@click.option("--dry-run", is_flag=True, help="Show what would change; write nothing.")
@click.option("--first", is_flag=True, help="add: put the tags before the others instead of behind them.")
@click.option("--create", is_flag=True, help="add: also write a caption for images that have none.")
@click.option("--text", "in_text", is_flag=True, help="replace: OLD anywhere in the text, not only as a whole tag.")
@click.option("--by", type=click.Choice(["name", "count"]), default="name", show_default=True, help="sort: the order.")
@click.option(
    "--keep", default=1, show_default=True, type=click.IntRange(0), help="sort: so many tags stay first (the word)."
)
@click.option("--top", default=50, show_default=True, type=click.IntRange(1), help="list: so many tags.")
@click.option("--caption-extension", default=".txt", show_default=True, help="Extension of the caption files.")
@click.option("--separator", default=",", show_default=True, help="What stands between two tags.")
def tags(*, directory: Path, action: str, words: tuple[str, ...], dry_run: bool, as_json: bool, **options: Any) -> int:
    """List or change the tags in all captions of DIRECTORY. * and ? in a tag stand for any letters; case does not
    count. Every change can be taken back with undo, the newest first."""
    from launcher.photos import tags as work

    texts = _texts(action, words, options)
    if action == "undo":
        return _undone(directory, dry_run, as_json)
    captions = work.read_captions(directory, options["caption_extension"], options["separator"])
    if action == "list":
        return _listed(captions, texts, options["top"], as_json)
    if action == "replace" and options["in_text"]:
        found = work.text_changes(captions, texts[0], texts[1])
    else:
        found = work.changes(captions, _edit(action, texts, options, captions), create=options["create"])
    left_out = list(captions.unreadable)
    if not dry_run:
        left_out += work.apply(captions, found, [action, *texts])
    document = {
        "ok": not left_out,
        "dry_run": dry_run,
        "captions": sum(one.text is not None for one in captions.captions),
        "images": len(captions.captions) + len(captions.unreadable),
        "changed": [one.as_json() for one in found],
        "left_out": [{"file": name, "why": why} for name, why in left_out],
    }
    if as_json:
        print_json(document)
    else:
        _say_changes(found, left_out, dry_run, f"{document['captions']} captions")
        without = sum(one.text is None for one in captions.captions)
        if action == "add" and without and not options["create"]:
            say(f"{without} images have no caption and stay without one; --create writes it")
        if found and not dry_run:
            say("take it back with the action undo")
    return 1 if left_out else 0


def _texts(action: str, words: tuple[str, ...], options: dict[str, Any]) -> list[str]:
    """The words of an action: 'a, b' are two tags. BadParameter where there are too few or too many."""
    least, most, shape = WORDS[action]
    whole = action == "replace" and options["in_text"]
    separator = options["separator"]
    texts = list(words) if whole else [part.strip() for word in words for part in word.split(separator) if part.strip()]
    if len(texts) < least or (most is not None and len(texts) > most) or (whole and len(texts) != 2):
        usage = f"{action} {'OLD NEW --text' if whole else shape}".strip()
        raise click.BadParameter(f"must be: tags DIRECTORY {usage}", param_hint="'[TAG]...'")
    if whole and not texts[0]:
        raise click.BadParameter("OLD must not be empty", param_hint="'[TAG]...'")
    for name, owner in (("first", "add"), ("create", "add"), ("in_text", "replace")):
        if options[name] and action != owner:
            raise click.BadParameter(f"belongs to {owner}", param_hint=f"--{'text' if name == 'in_text' else name}")
    return texts


def _edit(action: str, texts: list[str], options: dict[str, Any], captions: Captions) -> Edit:
    from launcher.photos import tags as work

    if action == "add":
        return work.add(texts, first=options["first"])
    if action == "remove":
        return work.remove(texts)
    if action == "replace":
        return work.replace(texts[0], texts[1:])
    if action == "sort":
        return work.sort(captions.counts() if options["by"] == "count" else None, keep=options["keep"])
    return work.dedupe()


def _listed(captions: Captions, texts: list[str], top: int, as_json: bool) -> int:
    from launcher.photos.folders import relative
    from launcher.photos.tags import holding

    counts = captions.counts()
    files = {text: [relative(one.file, captions.directory) for one in holding(captions, text)] for text in texts}
    if as_json:
        print_json(
            {
                "ok": not captions.unreadable,
                "images": len(captions.captions) + len(captions.unreadable),
                "captions": sum(one.text is not None for one in captions.captions),
                "tags": dict(counts.most_common()),
                "files": files,
                "left_out": [{"file": name, "why": why} for name, why in captions.unreadable],
            }
        )
        return 1 if captions.unreadable else 0
    for text in texts:
        say(f"{text}: {len(files[text])} captions")
        for name in files[text]:
            say(f"  {name}")
    if not texts:
        say(f"{len(counts)} tags in {sum(one.text is not None for one in captions.captions)} captions")
        for tag, count in counts.most_common(top):
            say(f"{count:6}  {tag}")
        if len(counts) > top:
            say(f"({len(counts) - top} more: --top)")
    for line in _left_out(captions.unreadable):
        say(line, err=True)
    return 1 if captions.unreadable else 0


def _undone(directory: Path, dry_run: bool, as_json: bool) -> int:
    from launcher.photos.tags import undo

    undone = undo(directory, dry_run=dry_run)
    if as_json:
        print_json(
            {
                "ok": not undone.kept,
                "dry_run": dry_run,
                "undone": undone.words,
                "changed": [one.as_json() for one in undone.changes],
                "left_out": [{"file": name, "why": why} for name, why in undone.kept],
            }
        )
    else:
        say(f"undo: {' '.join(undone.words)}")
        _say_changes(undone.changes, undone.kept, dry_run, "captions")
    return 1 if undone.kept else 0


def _say_changes(found: list[Change], left_out: list[tuple[str, str]], dry_run: bool, of: str) -> None:
    for one in found if dry_run else found[:SHOWN]:
        document = one.as_json()
        say(one.file)
        for sign, text in (("-", document["before"]), ("+", document["after"])):
            for line in (text or "").splitlines():
                say(f"  {sign} {line}")
    if not dry_run and len(found) > SHOWN:
        say(f"and {len(found) - SHOWN} more")
    for line in _left_out(left_out):
        say(line, err=True)
    say(f"{len(found)} of {of} {'would change; nothing is written' if dry_run else 'changed'}")


def _left_out(left_out: list[tuple[str, str]]) -> Iterator[str]:
    for name, why in left_out:
        yield f"left out: {name}: {why}"


@command("caption")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--model",
    required=True,
    metavar="NAME|PATH|HUB_ID",
    help="blip, blip-large, blip2, florence2, joycaption, qwen-vl, wd14 ..., a local folder, a hub id, or with "
    "--endpoint the server's name of it.",
)
@click.option("--endpoint", default="", metavar="URL", help="An OpenAI-compatible server; its key in KOHYAKIT_API_KEY.")
@click.option("--prompt", default="", metavar="TEXT", help="What a model that takes instructions is asked.")
@click.option("--prefix", default="", help='Put before each caption, such as "N0m3, ".')
@click.option("--beams", default=9, show_default=True, type=click.IntRange(1), help="Beams of the search; BLIP only.")
@click.option("--min-length", default=15, show_default=True, type=click.IntRange(1), help="Tokens; BLIP only.")
@click.option(
    "--max-length", default=0, type=click.IntRange(0), help="Tokens; 75 for BLIP, 300 for chat models if not given."
)
@click.option("--batch-size", default=4, show_default=True, type=click.IntRange(1), help="Images at once.")
@click.option("--drop-phrases", default="", metavar="FILE|blip", help="Phrases to take out; blip: the shipped list.")
@click.option("--threshold", default=0.35, show_default=True, type=click.FloatRange(0, 1), help="Of tags; WD14 only.")
@click.option(
    "--character-threshold", default=0.85, show_default=True, type=click.FloatRange(0, 1), help="Of names; WD14 only."
)
@click.option(
    "--order",
    type=click.Choice(["score", "name", "model"]),
    default="score",
    show_default=True,
    help="Of tags; WD14 only.",
)
@click.option(
    "--characters",
    type=click.Choice(["first", "last", "off"]),
    default="first",
    show_default=True,
    help="Where names of characters stand; WD14 only.",
)
@click.option("--keep-underscores", is_flag=True, help="long_hair instead of long hair; WD14 only.")
@click.option("--ratings", is_flag=True, help="Also the rating, first; WD14 only.")
@click.option("--exclude", default="", metavar="TAGS", help="Tags never to write, with commas between; WD14 only.")
@click.option("--append", "mode", flag_value="append", help="Put the new text behind captions that are there.")
@click.option("--overwrite", "mode", flag_value="overwrite", help="Replace captions that are there.")
@click.option("--caption-extension", "extension", default=".txt", show_default=True, help="Extension of the captions.")
@click.option("--dry-run", is_flag=True, help="Show what five images would get; write nothing.")
@click.option("--unload-after", is_flag=True, help="Also free the server's memory; a model here is always unloaded.")
def caption(*, directory: Path, mode: str | None, as_json: bool, **settings: Any) -> int:
    """Write a caption beside every image of DIRECTORY that has none. Goes on where it stopped. Exit code 3: some
    images got none, and are named."""
    from launcher.commands.demo import run_module

    if not directory.is_dir():
        raise error("no-folder", f"{directory}: there is no such folder", fix="check the path")
    words = ["--json"] if as_json else []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] if value else []
        else:
            words.append(f"{flag}={value}")
    return run_module("trainer.captioning", str(directory), f"--mode={mode or 'keep'}", *words)
