"""What a run or a tool leaves: LoRA files, written and read back."""
