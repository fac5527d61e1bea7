"""Runs one after the other, or one a GPU: a folder of plain files that survives kills and reboots."""
