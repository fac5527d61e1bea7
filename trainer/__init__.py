"""From a TrainConfig to a trained LoRA."""
