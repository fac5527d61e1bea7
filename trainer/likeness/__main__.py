"""`python -m trainer.likeness COUNT`: on stdin digests, grey and colour thumbnails; on stdout pairs as JSON."""

from __future__ import annotations

import sys

import numpy as np

from schemas.terminal import say_document
from trainer.likeness.search import GREY, SHADES, search

DIGEST = 32  # bytes


def main() -> int:
    count = int(sys.argv[1])
    data = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(count, -1)
    greys = data[:, DIGEST : DIGEST + GREY * GREY].reshape(count, GREY, GREY)
    shades = data[:, DIGEST + GREY * GREY :].reshape(count, SHADES, SHADES, 3)
    pairs = search([row.tobytes() for row in data[:, :DIGEST]], greys, shades)
    say_document([list(pair) for pair in pairs])
    return 0


if __name__ == "__main__":
    sys.exit(main())
