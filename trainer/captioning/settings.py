"""How captions are made: the settings, and the models that have a short name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

Describe = Callable[[Sequence[Image.Image]], list[str]]

# Short names; docs/dataset.md tells sizes and how to fetch each once. None of them runs code of its repository.
HUB = {
    "blip": "Salesforce/blip-image-captioning-base",
    "blip-large": "Salesforce/blip-image-captioning-large",
    "blip2": "Salesforce/blip2-opt-2.7b",
    "florence2": "florence-community/Florence-2-base",
    "florence2-large": "florence-community/Florence-2-large",
    "joycaption": "fancyfeast/llama-joycaption-beta-one-hf-llava",
    "qwen-vl": "Qwen/Qwen2.5-VL-3B-Instruct",
    "wd14": "SmilingWolf/wd-vit-tagger-v3",
    "wd14-swinv2": "SmilingWolf/wd-swinv2-tagger-v3",
    "wd14-eva02": "SmilingWolf/wd-eva02-large-tagger-v3",
}
TAGGERS = "wd14"  # what the short names of taggers begin with


@dataclass(frozen=True)
class CaptionSettings:
    """How captions are made. `mode` says what happens to a caption that is there: "keep", "append" or "overwrite"."""

    model: str
    prefix: str = ""
    extension: str = ".txt"
    mode: str = "keep"
    batch_size: int = 4
    prompt: str = ""  # what a model that takes instructions is asked
    beams: int = 9
    min_length: int = 15
    max_length: int = 0  # tokens; 0: 75 for a captioning model, 300 for one that takes instructions
    drop_phrases: str = ""  # a file, or "blip" for the shipped list
    threshold: float = 0.35
    character_threshold: float = 0.85
    order: str = "score"  # of tags: "score", "name", or "model" for the order of the model's list
    characters: str = "first"  # names of characters: "first", "last", "off"
    keep_underscores: bool = False
    ratings: bool = False
    exclude: str = ""  # tags that are never written, with commas between
    endpoint: str = ""
    unload_after: bool = False
