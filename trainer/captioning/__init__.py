"""Captions for a folder of images, by a model."""
