"""`python -m trainer.captioning FOLDER --model MODEL`, for `dataset caption`."""

from __future__ import annotations

if __name__ == "__main__":
    from trainer.watch.early import leave_on_signals

    leave_on_signals()

import sys

from schemas.signals import interruptible, outlast_terminal
from trainer.captioning.write import main

if __name__ == "__main__":
    outlast_terminal()
    with interruptible():
        sys.exit(main())
