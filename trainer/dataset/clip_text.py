"""CLIP's text before any model: cleaned, cut into words, and how many tokens it makes. Pure Python."""

from __future__ import annotations

import functools
import gzip
import html
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

MERGES = Path(__file__).parent.parent / "families" / "data" / "merges.txt.gz"


@functools.cache
def merge_table() -> tuple[str, ...]:
    """Pairs of byte-pair encoding as "left right", those that are joined first in front."""
    with gzip.open(MERGES, "rt", encoding="utf-8") as stream:
        return tuple(line for line in stream.read().splitlines()[1:] if line)


def byte_symbols() -> list[str]:
    """A printable character for each byte 0..255 (Radford et al. 2019, GPT-2), in vocabulary order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + place) for place in range(len(others))]


LIGATURES = {
    "Ĳ": "IJ", "ĳ": "ij", "ŉ": "ʼn", "Ǳ": "DZ", "ǲ": "Dz", "ǳ": "dz", "Ǆ": "DŽ", "ǅ": "Dž", "ǆ": "dž", "Ǉ": "LJ",
    "ǈ": "Lj", "ǉ": "lj", "Ǌ": "NJ", "ǋ": "Nj", "ǌ": "nj", "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl",
    "ﬅ": "ſt", "ﬆ": "st",
}  # fmt: skip
WIDE = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0xFF01, 0xFFF0)} | {"\u3000": " "}
QUOTES = dict.fromkeys("ʼ‘’‚‛", "'") | dict.fromkeys("“”„‟", '"')
BREAKS = dict.fromkeys(("\r", "\u2028", "\u2029", "\x85"), "\n")
CONTROLS = dict.fromkeys(
    [*range(0x09), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)], ""
)
CLEANED = str.maketrans(LIGATURES | WIDE | QUOTES | BREAKS) | CONTROLS
ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")
TERMINAL = re.compile(r"\x1b\[[\d;]*[a-zA-Z]")


def clean(text: str) -> str:
    """Text as CLIP was trained on: HTML entities, wide forms, ligatures, curly quotes and control characters resolved.

    Follows the text repair that the reference's tokenizer applies (ftfy's defaults), without its guess at wrongly
    decoded text.
    """
    entities = True
    cleaned = []
    for line in text.splitlines(keepends=True):
        entities = entities and "<" not in line
        cleaned.append(_clean_line(line, entities))
    return "".join(cleaned)


def _clean_line(line: str, entities: bool) -> str:
    while True:
        before = line
        if entities:
            line = ENTITY.sub(lambda found: html.unescape(found[0]), line)
        line = unicodedata.normalize("NFC", TERMINAL.sub("", line).translate(CLEANED))
        if line == before:
            return line


# CLIP's own pattern; letters and numbers beyond ASCII are told apart by `_pieces`.
PLAIN = re.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+", re.IGNORECASE | re.ASCII
)
ENDING = re.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d")


def token_count(text: str, pad: int | None = None) -> int:
    """How many tokens a text makes, without start and end. With `pad` 0 every "!" is one of its own."""
    if pad == 0 and "!" in text:
        parts = text.split("!")
        return len(parts) - 1 + sum(map(token_count, parts))
    text = unicodedata.normalize("NFC", clean(text)).lower()
    return sum(map(_word_tokens, PLAIN.findall(text) if text.isascii() else _pieces(text)))


def _pieces(text: str) -> Iterator[str]:
    """Runs of letters, single numbers, runs of anything else that is no blank."""
    place = 0
    while place < len(text):
        if ending := ENDING.match(text, place):
            yield ending[0]
            place = ending.end()
            continue
        kind = _kind(text[place])
        end = place + 1
        while kind in ("letter", "other") and end < len(text) and _kind(text[end]) == kind:
            end += 1
        if kind != "blank":
            yield text[place:end]
        place = end


def _kind(letter: str) -> str:
    category = unicodedata.category(letter)[0]
    return "blank" if letter.isspace() else {"L": "letter", "N": "number"}.get(category, "other")


@functools.cache
def _ranks() -> dict[str, int]:
    return {pair: rank for rank, pair in enumerate(merge_table())}


@functools.cache
def _symbols() -> list[str]:
    symbols = byte_symbols()
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order += [byte for byte in range(256) if byte not in order]
    return [symbol for _, symbol in sorted(zip(order, symbols, strict=True))]


@functools.lru_cache(1 << 16)
def _word_tokens(word: str) -> int:
    """Tokens of one word: its bytes, joined pair by pair in the table's order."""
    if word in ("<|startoftext|>", "<|endoftext|>"):
        return 1
    symbols, ranks = _symbols(), _ranks()
    parts = [symbols[byte] for byte in word.encode("utf-8", "replace")]
    parts[-1] += "</w>"
    while len(parts) > 1:
        rank, place = min((ranks.get(f"{parts[n]} {parts[n + 1]}", len(ranks)), n) for n in range(len(parts) - 1))
        if rank == len(ranks):
            break
        left, right = parts[place], parts[place + 1]
        joined: list[str] = []
        at = 0
        while at < len(parts):
            if at + 1 < len(parts) and parts[at] == left and parts[at + 1] == right:
                joined.append(left + right)
                at += 2
            else:
                joined.append(parts[at])
                at += 1
        parts = joined
    return len(parts)
