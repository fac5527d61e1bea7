"""`python -m trainer.toy PICTURE...`: what the toy classifier reads from each, as a JSON list."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from schemas.terminal import say
from trainer.dataset.images import opened
from trainer.toy import judge


def main(paths: Sequence[str]) -> int:
    images = []
    for path in paths:
        with opened(path) as image:
            images.append(image.convert("RGB"))
    say(json.dumps([asdict(verdict) for verdict in judge.read(images)] if images else []))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
