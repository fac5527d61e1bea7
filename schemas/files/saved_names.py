"""How saved LoRA files are named: the moment that the name tells, and what stands beside a file under its name."""

from __future__ import annotations

import re

PEFT, EMA = ".peft", ".ema"  # the copy for diffusers and peft (save_peft), the average of the weights (ema_decay)
BESIDE = (PEFT, EMA)  # NAME.peft.safetensors and so on
MOMENT = r"-\d{6}|-step\d{8}"  # after an epoch, after a step; without it the end
_REST = rf"(?P<copy>{MOMENT})?(?P<beside>{'|'.join(map(re.escape, BESIDE))})?\.(?:safetensors|ckpt|pt)"
SAVED = re.compile(rf"(?P<name>.+?){_REST}")


def saved_as(name: str) -> re.Pattern[str]:
    """Matches the whole names of the files that a run of this output name saves."""
    return re.compile(re.escape(name) + _REST)
