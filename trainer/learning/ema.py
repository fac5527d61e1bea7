"""EMA of the LoRA (`ema_decay`): an exponential moving average of its weights, saved beside them.

Own code: diffusers' EMAModel averages modules and copies weights back through a module tree, torch's AveragedModel
copies the whole module; here a dozen lines over the adapter's parameters do, and the swap is exact to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from schemas import TrainConfig
from trainer.adapters import Adapter

UPDATES = "updates"  # how many steps the average has seen, in a training state


class Average:
    """Float32 averages of the weights that train, of any shape, on their own device.

    After each of n updates: average = d average + (1 - d) weight, d = min(decay, (1 + n) / (10 + n)), so that the start
    counts little in a short run (TensorFlow's ExponentialMovingAverage, num_updates). Weights that rest later on, as
    the text encoders' may, are averaged as they stay.
    """

    def __init__(self, adapter: Adapter, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights: dict[str, nn.Parameter] = {
            name: weight for name, weight in adapter.named_parameters() if weight.requires_grad
        }
        self.averages = {name: weight.detach().float().clone() for name, weight in self.weights.items()}

    @classmethod
    def of(cls, adapter: Adapter, config: TrainConfig) -> Average | None:
        """None where none is asked for."""
        return cls(adapter, config.ema_decay) if config.ema_decay else None

    @torch.no_grad()
    def update(self) -> None:
        """To be called after each optimizer step, on every process: the weights are the same on all of them."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [weight.detach().float() for weight in self.weights.values()]
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the adapter has the averages as its weights; afterwards the very tensors of before."""
        before = {name: weight.data for name, weight in self.weights.items()}
        try:
            for name, weight in self.weights.items():
                weight.data = self.averages[name].to(weight.dtype)
            yield
        finally:
            for name, weight in self.weights.items():
                weight.data = before[name]

    def exact_state(self) -> dict[str, Tensor]:
        """Everything that a bit-exact resume needs."""
        return {**self.averages, UPDATES: torch.tensor(self.updates)}

    @torch.no_grad()
    def load_exact_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `exact_state`; KeyError when a tensor is missing."""
        self.updates = int(state[UPDATES])
        for name, average in self.averages.items():
            average.copy_(state[name])
