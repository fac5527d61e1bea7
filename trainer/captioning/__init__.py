"""Captions and tags from models: the work behind `dataset caption`."""
