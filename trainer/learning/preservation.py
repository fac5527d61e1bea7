"""Differential output preservation (reference section 6.6): on marked pictures the adapter shall change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.adapters import Adapter
from trainer.families import Conditioning, Sizes

ATTRIBUTE = "diff_output_preservation"  # in a subset's custom_attributes
Predict = Callable[[Tensor, Tensor, Conditioning, Sizes], Tensor]


def marked(attributes: Sequence[Mapping[str, Any]]) -> list[int]:
    """Places in a batch whose subset asks for preservation."""
    return [place for place, given in enumerate(attributes) if given.get(ATTRIBUTE)]


@torch.no_grad()
def preserved(
    wanted: Tensor, rows: list[int], adapter: Adapter, predict: Predict, noisy: Tensor, timesteps: Tensor,
    given: tuple[Conditioning, Sizes],
) -> Tensor:  # fmt: skip
    """`wanted` [B,4,h,w] with what the bare model predicts in `rows`; `given` is the conditioning of the whole batch.

    The texts are those of the adapted encoders, as in the reference; unlike there it works on every family (trap T21).
    """
    words, sizes = given
    some = Conditioning(words.hidden[rows], None if words.pooled is None else words.pooled[rows])
    theirs = Sizes(sizes.original[rows], sizes.crop[rows], sizes.target[rows])
    with adapter.switched_off():
        bare = predict(noisy[rows], timesteps[rows], some, theirs)
    wanted = wanted.clone()
    wanted[rows] = bare.to(wanted)
    return wanted
