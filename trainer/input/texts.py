"""Captions to conditioning during training: encoded with gradients, or once per text when the encoders stand still."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from schemas import TrainConfig
from trainer.families import Conditioning, Family, Models

KEPT = 1024  # texts; SDXL's weigh about 0.3 MB each in half precision


class TextStates:
    """Gives the conditioning of a batch of captions.

    Frozen encoders: every text is encoded by itself and kept, so that a text always gives the same numbers, whatever
    stood beside it in the batch (exact resume rests on this), and repeated captions cost nothing.
    """

    def __init__(self, models: Models, family: Family, config: TrainConfig, *, trained: bool) -> None:
        self.models, self.family, self.config, self.trained = models, family, config, trained
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        if self.trained:
            return self.family.encode(self.models, captions, self.config)
        return Conditioning.stack([self._one(caption) for caption in captions])

    def _one(self, caption: str) -> Conditioning:
        if caption not in self._kept:
            with torch.no_grad():
                # in main memory: a thousand texts would take 0.3 GB of the card
                self._kept[caption] = self.family.encode(self.models, [caption], self.config).detach_cpu()
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(caption)
        return self._kept[caption]
