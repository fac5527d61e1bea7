"""What a run leaves: LoRA files and their headers, states, results, previews."""
