"""Masks for the loss: the work behind `dataset mask`."""
