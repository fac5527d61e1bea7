"""From a folder of photos to a training folder: read, prepare, check, show, pack. Pillow only, no torch."""
