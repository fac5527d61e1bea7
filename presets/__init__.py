"""Shipped presets: ordinary Kohya GUI JSON files, data without code. Their `training_comment` says whom each is for."""
