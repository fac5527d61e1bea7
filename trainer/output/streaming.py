"""Safetensors files read and written tensor by tensor: no more than one is in memory, whatever the size of the file.

Format: https://huggingface.co/docs/safetensors (8 bytes length, JSON header, data). Tensors are read with plain reads,
since pages of a mapped file count as the memory of the process that touched them.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from schemas.files.textfile import open_regular
from schemas.files.weights import BITS, Header, read_header
from schemas.files.writing import write_atomically
from schemas.problems import error
from trainer.output.lora_file import HASHED_AT, HASHED_BYTES

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
PIECE = 1 << 24  # bytes that are copied at once
WEBUI_HASHES = {"sshs_model_hash": 64, "sshs_legacy_hash": 8}  # name -> digits
SPEC_HASH = "modelspec.hash_sha256"


@dataclass(frozen=True)
class Entry:
    """One tensor of a file to be written: safetensors dtype name, shape, and what makes it, called once."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def read_tensor(header: Header, name: str) -> Tensor:
    """The tensor as stored, in memory of its own."""
    info = header.tensors[name]
    dtype = DTYPES.get(info.dtype)
    if dtype is None:
        must = f"is stored as {info.dtype}, which cannot be computed with"
        raise error("bad-tensor", must, file=str(header.path), key=name, fix="use a file of 16 or 32 bit numbers")
    raw = torch.empty(info.end - info.start, dtype=torch.uint8)
    with open_regular(header.path, what="weights file") as stream:
        stream.seek(info.start)
        place: Any = raw.numpy()
        if stream.readinto(place) != len(raw):
            raise error("truncated-file", "became shorter while it was read", file=str(header.path), key=name)
    return raw.view(dtype).reshape(info.shape)


def write_streamed(
    path: Path,
    entries: Sequence[Entry],
    metadata: Mapping[str, str],
    *,
    hashes: Collection[str] = tuple(WEBUI_HASHES),
    watch: Callable[[Iterable[Entry]], Iterable[Entry]] = iter,
) -> None:
    """Write the entries atomically; `hashes` of the data (sshs_*, modelspec.hash_sha256) are made anew in the header.

    What was written is read again, tensor by tensor, before it takes its place. ConfigError `not-finite` where a number
    does not fit its dtype. `watch` may show progress.
    """
    ordered = sorted(entries, key=lambda entry: -BITS[entry.dtype])  # wide ones first: all stand at multiples of it
    placeholders = {name: _spelled(name, "0" * 64) for name in hashes}
    texts = {**metadata, **placeholders}
    head, digests = _header(ordered, texts), dict[str, bytes]()
    legacy_from = HASHED_AT - len(_header(ordered, {k: v for k, v in metadata.items() if k.startswith("ss_")}))

    def write(stream: IO[bytes]) -> None:
        stream.write(head)
        whole, window, place = hashlib.sha256(), hashlib.sha256(), 0
        for entry in watch(ordered):
            own = hashlib.blake2b(digest_size=16)
            for piece in _bytes_of(entry, str(path)):
                stream.write(piece)
                whole.update(piece)
                own.update(piece)
                first, last = max(legacy_from - place, 0), max(legacy_from + HASHED_BYTES - place, 0)
                window.update(piece[first:last])
                place += len(piece)
            digests[entry.name] = own.digest()
        found = {name: _spelled(name, (window if "legacy" in name else whole).hexdigest()) for name in hashes}
        texts.update(found)
        stream.seek(0)
        stream.write(_header(ordered, texts))

    write_atomically(path, write, lambda scratch: _read_back(scratch, texts, digests))


def _spelled(name: str, digits: str) -> str:
    return f"0x{digits}" if name == SPEC_HASH else digits[: WEBUI_HASHES[name]]


def _header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded to a multiple of 8 bytes."""
    document: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for entry in entries:
        size = BITS[entry.dtype] // 8 * functools.reduce(lambda one, other: one * other, entry.shape, 1)
        document[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(entry: Entry, file: str) -> Iterator[memoryview]:
    tensor = entry.make().detach().cpu()
    wanted = DTYPES[entry.dtype]
    assert tuple(tensor.shape) == entry.shape, (entry.name, tuple(tensor.shape), entry.shape)
    if tensor.dtype != wanted:
        stored = tensor.to(wanted)
        if stored.is_floating_point() and not _finite(stored) and _finite(tensor):
            must = f"has numbers too large for {entry.dtype}"
            raise error("not-finite", must, key=entry.name, file=file, fix="--dtype float")
        tensor = stored
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    array: Any = flat.numpy()
    view = memoryview(array)
    for start in range(0, len(view), PIECE):
        yield view[start : start + PIECE]


def _finite(tensor: Tensor) -> bool:
    wide = tensor.float() if tensor.element_size() == 1 else tensor
    return bool(torch.isfinite(wide).all())


def _read_back(scratch: Path, metadata: Mapping[str, str], digests: Mapping[str, bytes]) -> None:
    """OSError where the disk gives back something else than was written."""
    header = read_header(scratch)
    wrong = header.metadata.keys() ^ metadata.keys() or header.tensors.keys() ^ digests.keys()
    with open_regular(scratch, what="weights file") as stream:
        for name, info in header.tensors.items():
            own, left = hashlib.blake2b(digest_size=16), info.end - info.start
            stream.seek(info.start)
            while left and (piece := stream.read(min(left, PIECE))):
                own.update(piece)
                left -= len(piece)
            if own.digest() != digests.get(name):
                wrong = wrong or {name}
    if wrong:
        raise OSError(f"{min(wrong)} was read back otherwise than it was written; the disk or the memory is faulty")
