"""CLIP's tokenizer from the shipped merge table; windows of 77 ids; weighted captions (reference sections 5.2 and 5.5).

No download and no tokenizer folder is needed: the vocabulary follows from the merge table.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from transformers import CLIPTokenizer

from schemas import error
from trainer.dataset.clip_text import byte_symbols, clean, merge_table

START, END = 49406, 49407
WINDOW = 75  # caption tokens a window holds, between its first and last id


@functools.cache
def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer of SD1.5, SD2 and both SDXL encoders; they differ only in the pad id, see `windows`."""
    merges = [tuple(line.split()) for line in merge_table()]
    symbols = byte_symbols()
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), *(left + right for left, right in merges)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=WINDOW + 2)


def token_ids(text: str, pad: int = END) -> list[int]:
    """Ids of a text, without start, end, padding or limit.

    Id 0 is "!": a tokenizer that pads with it takes every "!" for that special token, and splits the text there.
    """
    if pad == 0 and "!" in text:
        first, *others = (token_ids(part) for part in text.split("!"))
        return first + [number for part in others for number in (0, *part)]
    ids: list[int] = clip_tokenizer()(clean(text), add_special_tokens=False, verbose=False).input_ids
    return ids


def windows(text: str, max_token_length: int | None, pad: int = END) -> list[list[int]]:
    """Rows of 77 ids: 1 for None, else max_token_length / 75. `pad` is END (SD1.5, first SDXL encoder) or 0."""
    return _rows(token_ids(text, pad), max_token_length, pad)


def weighted_windows(
    text: str, max_token_length: int | None, pad: int = END
) -> tuple[list[list[int]], list[list[float]]]:
    """(ids, weights), both rows of 77; start, end and padding weigh 1. Pieces are tokenized one by one."""
    ids: list[int] = []
    weights: list[float] = []
    for piece, weight in parse_weights(text):
        found = token_ids(piece, pad)
        ids += found
        weights += [weight] * len(found)
    length = max_token_length or WINDOW
    flat = [1.0, *weights[:length]]
    flat += [1.0] * (length + 2 - len(flat))
    rows = [[1.0, *flat[start : start + WINDOW], 1.0] for start in range(1, length + 1, WINDOW)]
    return _rows(ids, max_token_length, pad), rows


def _rows(ids: Sequence[int], max_token_length: int | None, pad: int) -> list[list[int]]:
    length = max_token_length or WINDOW
    flat = [START, *ids[:length], END]
    flat += [pad] * (length + 2 - len(flat))
    if max_token_length is None:
        return [flat]
    rows = [[START, *flat[start : start + WINDOW], flat[-1]] for start in range(1, length + 1, WINDOW)]
    for row in rows if pad != END else ():
        if row[-2] not in (END, pad):
            row[-1] = END
        if row[1] == pad:
            row[1] = END
    return rows


LEXEME = re.compile(r"\\[()\[\]\\]|\\|[(\[\])]|:[+-]?[.\d]+\)|[^\\()\[\]:]+|:")


def parse_weights(text: str) -> list[tuple[str, float]]:
    """Pieces of a weighted caption: (x) is 1.1, (x:1.3) is 1.3, [x] is 1/1.1, \\( is a bracket; nesting multiplies.
    A backslash before anything else is dropped, as in the reference.

    An opener that is never closed holds to the end. ConfigError `bad-weight` for a weight that is no number.
    """
    pieces: list[list] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def scale(start: int, factor: float) -> None:
        for piece in pieces[start:]:
            piece[1] *= factor

    for lexeme in LEXEME.findall(text):
        if lexeme in ("(", "["):
            opened[lexeme].append(len(pieces))
        elif len(lexeme) > 2 and lexeme[0] == ":" and opened["("]:
            scale(opened["("].pop(), _weight(lexeme[1:-1], text))
        elif lexeme == ")" and opened["("]:
            scale(opened["("].pop(), 1.1)
        elif lexeme == "]" and opened["["]:
            scale(opened["["].pop(), 1 / 1.1)
        else:
            pieces.append([lexeme[1:] if lexeme[0] == "\\" else lexeme, 1.0])
    for start in opened["("]:
        scale(start, 1.1)
    for start in opened["["]:
        scale(start, 1 / 1.1)
    return _merged(pieces) or [("", 1.0)]


def _merged(pieces: list[list]) -> list[tuple[str, float]]:
    merged: list[tuple[str, float]] = []
    for text, weight in pieces:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    return merged


def _weight(number: str, text: str) -> float:
    try:
        return float(number)
    except ValueError:
        fix = r"write the weight as in (word:1.2), or escape the brackets as \( and \)"
        raise error("bad-weight", f"has a weight that is no number: {number}", got=text, fix=fix) from None
