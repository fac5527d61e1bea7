"""Pages for reading on, and `python docs/generate.py`, which writes those that are made from tables."""
