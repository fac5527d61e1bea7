"""Which picture, which text, in which order. Without torch, so that the launcher can say the same before a run."""
