"""`python -m benchmarks.broken [FAULT ...]`: puts a fault into the trainer and names the tests that see it.

A fault that no test sees is the finding. docs/learning.md keeps the table. Tests that train in a process of their own
run without the fault.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

VARIABLE = "KOHYAKIT_FAULT"


def wrong_sign() -> None:
    """The U-Net is taught the opposite of the noise, or of v."""
    from trainer.learning import objective

    right = objective.target
    objective.target = lambda *given: -right(*given)


def wrong_schedule() -> None:
    """Another noise schedule than the base model's."""
    from trainer.learning import objective

    objective.BETA_END = 0.02


def swapped_captions() -> None:
    """Every picture of a batch has the caption of the next one."""
    from trainer.input.batches import _Maker

    right = _Maker._batch

    def swapped(self: _Maker, order: Any) -> Any:
        batch = right(self, order)
        batch.captions = batch.captions[1:] + batch.captions[:1]
        return batch

    _Maker._batch = swapped  # type: ignore[method-assign]


def dropped_alpha() -> None:
    """A LoRA's output is not scaled by alpha / rank while it trains."""
    from trainer.adapters.lora_layers import NAME, KohyaLayer

    right = KohyaLayer.set_alpha

    def unscaled(self: KohyaLayer, alpha: float) -> None:
        right(self, alpha)
        self.scaling[NAME] = self.multiplier

    KohyaLayer.set_alpha = unscaled  # type: ignore[method-assign]


def untrained_text() -> None:
    """Text encoders get no adapter, whatever the options say."""
    lora: Any = importlib.import_module("trainer.adapters.lora")
    right = lora.chosen_parts
    lora.chosen_parts = lambda options: right(options) & {"unet"}


FAULTS: dict[str, Callable[[], None]] = {
    "wrong-sign": wrong_sign,
    "wrong-schedule": wrong_schedule,
    "swapped-captions": swapped_captions,
    "dropped-alpha": dropped_alpha,
    "untrained-text": untrained_text,
}


def pytest_configure(config: Any) -> None:
    """pytest's hook: this module is also the plug-in that puts the fault in."""
    FAULTS[os.environ[VARIABLE]]()


def seen_by(fault: str, words: Sequence[str]) -> list[str]:
    """The tests that fail with `fault` in place."""
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.broken", "-q", "--tb=no", "-rfE", *words]
    told = subprocess.run(command, env={**os.environ, VARIABLE: fault}, capture_output=True, text=True).stdout
    if not re.search(r"\d+ (passed|failed)", told):
        raise SystemExit(f"pytest ran no test:\n{told}")
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", told, re.MULTILINE)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.broken", description=__doc__)
    parser.add_argument("faults", nargs="*", default=list(FAULTS), metavar="FAULT", help=", ".join(FAULTS))
    parser.add_argument("--tests", nargs="+", default=["tests/trainer"], metavar="WORD", help="what pytest is told")
    given = parser.parse_args(words)
    for fault in given.faults:
        if fault not in FAULTS:
            parser.error(f"{fault}: the faults are {', '.join(FAULTS)}")
        found = seen_by(fault, given.tests)
        print(f"{fault}: seen by {len(found)} tests" if found else f"{fault}: SEEN BY NO TEST", flush=True)
        for test in found:
            print(f"  {test}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
