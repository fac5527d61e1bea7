"""Whether the numbers of a weights file are finite: bytes looked at, without torch or numpy."""

from __future__ import annotations

import mmap

from schemas.files.textfile import open_regular
from schemas.files.weights import Header

WIDTHS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
PIECE = 2**22  # bytes looked at once
# bytes that hold the sign and the top of an exponent of ones; of F16, F8 the whole exponent
_TOPS = {
    "F64": b"\x7f\xff", "F32": b"\x7f\xff", "BF16": b"\x7f\xff", "F8_E4M3": b"\x7f\xff",
    "F16": bytes(byte for byte in range(256) if byte & 0x7C == 0x7C),
    "F8_E5M2": bytes(byte for byte in range(256) if byte & 0x7C == 0x7C),
}  # fmt: skip
_REST = {"F64": 0xF0, "F32": 0x80, "BF16": 0x80}  # what is left of the exponent in the next byte


def finite(raw: bytes, dtype: str) -> bool:
    """Whether little-endian floats hold no NaN and no infinity: no exponent is all ones."""
    width, tops = WIDTHS[dtype], _TOPS[dtype]
    high = raw[width - 1 :: width]
    if not any(top in high for top in tops):
        return True
    mask = _REST.get(dtype)
    if mask is None:
        return False
    low = raw[width - 2 :: width]
    return not any(a in tops and b & mask == mask for a, b in zip(high, low, strict=True))


def not_finite(header: Header) -> list[str]:
    """The tensors of a file with a NaN or an infinity among their numbers."""
    found: list[str] = []
    if not header.size:
        return found
    with (
        open_regular(header.path, what="weights file") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        for name, info in header.tensors.items():
            if info.dtype in WIDTHS:
                pieces = range(info.start, info.end, PIECE)
                if not all(finite(data[start : min(start + PIECE, info.end)], info.dtype) for start in pieces):
                    found.append(name)
    return found
