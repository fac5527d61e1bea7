"""`python -m benchmarks.random_checkpoint --family sd15|sd2|sdxl [--tiny] OUT`: a base model of random weights."""

from __future__ import annotations

import sys

from trainer.families.random_checkpoint import main, write

__all__ = ["main", "write"]

if __name__ == "__main__":
    sys.exit(main())
