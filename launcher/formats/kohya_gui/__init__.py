"""The JSON of Kohya_ss's LoRA tab: read as Kohya reads it, written as Kohya writes it."""

from launcher.formats.kohya_gui.document import Document, decode, parse
from launcher.formats.kohya_gui.entries import form_of, gui_command, gui_steps, gui_toml
from launcher.formats.kohya_gui.form import Form, load
from launcher.formats.kohya_gui.reader import read, read_document
from launcher.formats.kohya_gui.schema import schema, validate_document
from launcher.formats.kohya_gui.table import Key, defaults, hidden, keys
from launcher.formats.kohya_gui.writer import dumps, write

__all__ = [
    "Document",
    "Form",
    "Key",
    "decode",
    "defaults",
    "dumps",
    "form_of",
    "gui_command",
    "gui_steps",
    "gui_toml",
    "hidden",
    "keys",
    "load",
    "parse",
    "read",
    "read_document",
    "schema",
    "validate_document",
    "write",
]
