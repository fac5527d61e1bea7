"""Image-text-to-text models of transformers: captioning models (BLIP), prompted ones (Florence-2), chat models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from schemas.problems import ConfigError, Problem, error, nearest
from schemas.terminal import shell_word
from trainer.captioning.settings import HUB, CaptionSettings, Describe

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_SECONDS = 10  # to answer whether it has a model
PLACES = ("/", "\\", "./", "../", "~", ".\\", "..\\")  # what paths begin with, and no hub id
# What a model is asked where no --prompt says otherwise: by the beginning of its type, else as a chat.
TASKS = {"florence": "<MORE_DETAILED_CAPTION>"}
QUESTION = "Describe this image in one or two plain sentences."
SENTENCE, ANSWER = 75, 300  # tokens at most of a captioning model, of a chat model


def model_named(model: str) -> str:
    """The local folder or hub id that a --model means; ConfigError, in about a second, for one that cannot be had."""
    known = f"must be one of {', '.join(HUB)}, a folder with a model, or a hub id such as {HUB['blip']}"
    if Path(model).exists():
        files = ("config.json", "model.onnx")
        if not any((Path(model) / file).is_file() for file in files):
            must = f"holds no model: there is no {' and no '.join(files)} in it"
            raise error("no-model", must, key="--model", got=model, fix="name the folder of a downloaded model")
        return model
    if model.startswith(PLACES):
        raise error("no-model", "is no folder that exists", key="--model", got=model, fix="check the path")
    name = HUB.get(model, model)
    if not HUB_ID.fullmatch(name):
        guess = nearest(model, HUB)
        raise error("unknown-model", known, key="--model", got=model, fix=f"--model {guess or 'blip'}")
    from huggingface_hub import HfApi, try_to_load_from_cache

    if not any(isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "model.onnx")):
        try:
            HfApi().model_info(name, timeout=HUB_SECONDS)
        except Exception as fault:  # of the network or of the hub, in many classes
            said = str(fault).strip().splitlines()
            must = f"is not on this machine, and the hub does not give it: {said[0] if said else type(fault).__name__}"
            fix = f"hf download {shell_word(name)} where the hub can be reached, or --model FOLDER"
            raise error("no-model", must, key="--model", got=model, fix=fix) from None
    return name


def no_model(name: str, fault: Exception) -> ConfigError:
    """A model that is there and cannot be loaded."""
    said = str(fault).strip().splitlines()
    return ConfigError([Problem(
        code="no-model", key="--model", got=name, must=f"cannot be loaded: {said[0] if said else fault}",
        fix="give the folder of a downloaded model, or connect to the hub",
    )])  # fmt: skip


def captioner(name: str, settings: CaptionSettings) -> Describe:
    """A model of transformers, from a local folder or the hub; code that a repository brings is not run."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    device = device_name()
    try:
        processor = AutoProcessor.from_pretrained(name)
        dtype = torch.float32 if device == "cpu" else "auto"
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype).to(device).eval()
    except Exception as fault:  # a folder may hold anything
        raise no_model(name, fault) from None
    text = asked(processor, str(getattr(model.config, "model_type", "")), settings)
    lengths = _lengths(settings, chats=bool(_template(processor)))
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is not None and _template(processor):
        tokenizer.padding_side = "left"  # answers follow their question at once

    def describe(images: Sequence[Image.Image]) -> list[str]:
        words: dict[str, Any] = {"text": [text] * len(images), "padding": True} if text else {}
        inputs = processor(images=list(images), return_tensors="pt", **words).to(device)
        if model.dtype != torch.float32:
            inputs = inputs.to(model.dtype)
        with torch.inference_mode():
            tokens = model.generate(**inputs, **lengths)
        question = inputs.get("input_ids")
        if question is not None and tokens.shape[1] >= question.shape[1]:
            if torch.equal(tokens[:, : question.shape[1]], question) and _template(processor):
                tokens = tokens[:, question.shape[1] :]  # chat models repeat the question
        return [one.strip() for one in processor.batch_decode(tokens, skip_special_tokens=True)]

    return describe


def device_name() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def asked(processor: Any, model_type: str, settings: CaptionSettings) -> str:
    """The text that goes with each image: nothing, a task, or a question in the form that the model was taught."""
    if _template(processor):
        content = [{"type": "image"}, {"type": "text", "text": settings.prompt or QUESTION}]
        chat = [{"role": "user", "content": content}]
        return str(processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
    task = next((task for start, task in TASKS.items() if model_type.startswith(start)), "")
    return settings.prompt or task


def _template(processor: Any) -> Any:
    return getattr(processor, "chat_template", None) or getattr(
        getattr(processor, "tokenizer", None), "chat_template", None
    )


def _lengths(settings: CaptionSettings, *, chats: bool) -> dict[str, Any]:
    if chats:  # beams cost memory, and chat models need none
        return {"max_new_tokens": settings.max_length or ANSWER, "do_sample": False, "num_beams": 1}
    longest = max(settings.max_length or SENTENCE, settings.min_length)
    return {"num_beams": settings.beams, "min_length": settings.min_length, "max_length": longest}
