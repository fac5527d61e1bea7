"""Saved LoRA files of a run, measured beside each other and beside the base model, for `kohyakit compare`."""
