"""How the adapter learns: checkpointing, streaming and number formats of the frozen model."""
