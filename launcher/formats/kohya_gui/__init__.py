"""The JSON of Kohya_ss's LoRA tab: read as Kohya reads it, written as Kohya writes it."""

from launcher.formats.kohya_gui.document import Document, decode, parse
from launcher.formats.kohya_gui.entries import gui_command, gui_steps, gui_toml
from launcher.formats.kohya_gui.form import Form, load
from launcher.formats.kohya_gui.reader import read, read_document
from launcher.formats.kohya_gui.table import Key, defaults, hidden, keys

__all__ = [
    "Document",
    "Form",
    "Key",
    "decode",
    "defaults",
    "gui_command",
    "gui_steps",
    "gui_toml",
    "hidden",
    "keys",
    "load",
    "parse",
    "read",
    "read_document",
]
