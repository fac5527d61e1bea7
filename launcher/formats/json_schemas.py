"""The JSON Schema of each format that is a document, made from the tables that its reader runs on.

`python docs/generate.py` writes them to schemas/*.schema.json, for editors.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from launcher.formats.base import Draft
from launcher.formats.registry import FORMATS
from schemas.datasets import Setting
from schemas.problems import Problem

FOLDER = Path(__file__).resolve().parents[2] / "schemas"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
MARK: dict[str, Any] = {"$schema": {"type": "string", "description": "Where an editor finds this schema."}}
SIZE: dict[str, Any] = {
    "anyOf": [
        {"type": "integer", "minimum": 1},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
    ]
}
# Keys of a dataset file that no argument explains.
CIVITAI_WORDS: dict[str, dict[str, Any]] = {
    "engine": {"enum": ["kohya", "rapid", "flux2-dev", "flux2-dev-edit", "musubi", "ai-toolkit", "x-flux"],
               "default": "kohya"},
    "loraType": {"enum": ["lora"], "default": "lora"},
    "numRepeats": {"type": "integer", "description": "Times that each picture is seen per epoch."},
    "targetSteps": {"type": "integer", "description": "Computed: pictures x repeats x epochs / batch size."},
    "resolution": {"type": "integer", "multipleOf": 64, "description": "Side of the square training size."},
    "unetLR": {"type": "number", "description": "Learning rate of the U-Net."},
    "textEncoderLR": {"type": "number", "description": "Learning rate of the text encoder; 0 trains the U-Net only."},
    "optimizerType": {"type": "string", "examples": ["AdamW8Bit", "Adafactor", "Prodigy"]},
    "optimizerArgs": {"type": "string", "examples": ["weight_decay=0.1"],
                      "description": "Arguments of the optimizer; the site no longer shows them."},
    "lrScheduler": {"enum": ["constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "linear"]},
}  # fmt: skip
CIVITAI_DEFAULTS: dict[str, Any] = {  # SD1.5; other bases differ
    "unetLR": 5e-4, "textEncoderLR": 5e-5, "clipSkip": 1, "keepTokens": 0, "networkDim": 32, "networkAlpha": 16,
    "resolution": 512, "lrScheduler": "cosine_with_restarts", "lrSchedulerNumCycles": 3, "minSnrGamma": 5,
    "noiseOffset": 0.1, "enableBucket": True, "optimizerType": "AdamW8Bit", "maxTrainEpochs": 10,
    "shuffleCaption": False, "trainBatchSize": 6, "flipAugmentation": False,
}  # fmt: skip


def kohya_gui() -> dict[str, Any]:
    """The LoRA tab's form; a snapshot is one too."""
    from launcher.formats.kohya_gui.schema import schema

    return schema()


def sd_scripts() -> dict[str, Any]:
    """The training TOML, flat or with sections; keys that other programs leave in it may stand, and are struck out."""
    from launcher.formats.kohya_gui import keys
    from launcher.formats.sd_scripts import FAMILY_KEYS, KIND_KEYS, LEFTOVERS, RENAMED
    from schemas.derive import json_schema

    found = json_schema()
    idle = {name: f"Old name of {new}." for name, new in RENAMED.items()}
    idle |= {name: f"For {kind} training only." for name, kind in KIND_KEYS.items()}
    idle |= {key.argument or key.name: f"For {' and '.join(key.only)} only." for key in keys().values() if key.only}
    idle |= {name: f"For {family} only." for family, names in FAMILY_KEYS.items() for name in names}
    idle |= {name: f"Not read: {why}." for name, why in LEFTOVERS.items()}
    options = found["additionalProperties"]["properties"]
    options["dynamo_backend"]["enum"].append("no")
    for name in sorted(idle.keys() - options.keys()):
        options[name] = {"title": name, "description": idle[name], "deprecated": True}
    found["properties"] |= options
    return found


def dataset() -> dict[str, Any]:
    """The dataset_config document; every setting may also stand a level higher."""
    from schemas.datasets import may_stand

    anywhere = _settings(may_stand("dataset"))
    strict = {"type": "object", "additionalProperties": False}
    subset = {**strict, "title": "one folder", "properties": _settings(may_stand("subset"))}
    subsets = {"type": "array", "items": subset, "minItems": 1, "description": "The folders of this dataset."}
    one = {**strict, "title": "one dataset: folders of one size and batch", "required": ["subsets"],
           "properties": {**anywhere, "subsets": subsets}}  # fmt: skip
    general = {**strict, "title": "defaults for everything below", "properties": anywhere}
    return {
        "$schema": DRAFT,
        "title": "sd-scripts dataset_config",
        "description": "Looked up in a subset, then its dataset, then general, then the command line.",
        **strict,
        "properties": {**MARK, "general": general, "datasets": {"type": "array", "items": one, "minItems": 1}},
        "required": ["datasets"],
    }


def _settings(rows: Mapping[str, Setting]) -> dict[str, Any]:
    from schemas.datasets import FILTERS, option_of

    number = {"type": "number"}
    shapes: dict[str, Any] = {
        "int": {"type": "integer"},
        "bool": {"type": "boolean"},
        "str": {"type": "string"},
        "path": {"type": "string"},
        "float": number,
        "pair": {"type": "array", "items": number, "minItems": 2, "maxItems": 2},
        "table": {"type": "object"},
        "filter": {"enum": list(FILTERS)},
        "resolution": SIZE,
    }
    found = {}
    for name, row in sorted(rows.items()):
        option = option_of(name)
        default = {"default": option.default} if option and option.default not in (None, ()) else {}
        marks = option.marks if option and row.form in ("int", "float") else {}
        bounds = {word: marks[mark] for mark, word in (("ge", "minimum"), ("le", "maximum")) if mark in marks}
        said = row.meaning or (option.doc if option else name)
        idle = {"deprecated": True} if row.idle else {}
        found[name] = {"title": name, "description": said, **shapes[row.form], **default, **bounds, **idle}
    return found


def civitai() -> dict[str, Any]:
    """The training parameters as the site shows them; ranges are the widest that it ever had."""
    from launcher.formats.civitai import ARGUMENTS, ORDER, RANGES
    from schemas.config import table
    from schemas.derive import JSON_TYPES

    properties: dict[str, Any] = {}
    for key in ORDER:
        option = table().get(ARGUMENTS.get(key, ""))
        shape: dict[str, Any] = {"title": key}
        if option is not None:
            shape |= {"description": option.doc, "type": JSON_TYPES[option.kind]}
        shape |= CIVITAI_WORDS.get(key, {})
        if "enum" in shape:
            shape.pop("type", None)
        if key in RANGES:
            shape |= dict(zip(("minimum", "maximum"), RANGES[key], strict=True))
        if key in CIVITAI_DEFAULTS:
            shape["default"] = CIVITAI_DEFAULTS[key]
        properties[key] = shape
    outer = {"params": {"$ref": "#", "description": "The same one level down, as in a dump of a model."}}
    return {
        "$schema": DRAFT,
        "title": "CivitAI training parameters",
        "description": "The Training Params panel of a model on the site (kohya engine). Defaults are those of SD1.5.",
        "type": "object",
        "properties": {**MARK, **properties, **outer},
    }


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema of a format that has one."""
    found: dict[str, Any] = FORMATS[name].part("schema")()
    return found


def text(name: str) -> str:
    """The published file of one format."""
    return json.dumps(schema_of(name), indent=1, ensure_ascii=False) + "\n"


@functools.cache
def _validator(name: str) -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(schema_of(name))


def problems(draft: Draft, known: Iterable[Problem]) -> list[Problem]:
    """What the schema of a draft's format has against the file, without what `known` says of the same key."""
    row = FORMATS.get(draft.format)
    if draft.document is None or row is None or row.schema is None:
        return []
    told = {problem.key for problem in known}
    found = row.part("faults")(draft) if row.faults else _faults(draft)
    return [problem for problem in found if problem.key not in told]


def form_faults(draft: Draft) -> list[Problem]:
    """What the form's schema has against a Kohya GUI JSON."""
    from launcher.formats.kohya_gui.schema import validate_document

    return validate_document(draft.document, draft.lines, file=draft.file)


def dataset_faults(draft: Draft) -> list[Problem]:
    """What the schema has against a dataset file, and what no schema can say."""
    found = list(_faults(draft))
    return found + list(_dataset_faults(draft, {problem.key for problem in found}))


def _faults(draft: Draft) -> Iterator[Problem]:
    """Schema faults as Problems; unknown and missing keys are left to the reader, which words them better."""
    said: set[str] = set()
    for fault in _validator(draft.format).iter_errors(draft.document):
        path = ".".join(str(part) for part in fault.absolute_path)
        fate = draft.keys.get(path)
        left = fate is not None and fate.status not in ("used", "renamed", "default")
        if left or path in said or fault.validator in ("additionalProperties", "required", "minItems"):
            continue
        said.add(path)
        place: dict[str, Any] = {"key": path, "file": draft.file, "line": draft.lines.get(path)}
        must = _must(fault.validator, fault.validator_value)
        yield Problem(
            code="bad-value",
            must=must,
            got=fault.instance,
            fix=f"remove {path} for the default, or write what is allowed",
            **place,
        )


def _dataset_faults(draft: Draft, told: Set[str | None]) -> Iterator[Problem]:
    """What no JSON Schema can say of a dataset file's values: paths that nobody means, sizes of pairs."""
    from schemas.config import TrainConfig
    from trainer.dataset.document import document_problems

    for fault in document_problems(draft.document or {}, TrainConfig()):
        path = fault["key"].replace("/", ".")
        if fault["code"] == "bad-value" and path in draft.keys and path not in told:
            yield Problem(**{**fault, "key": path}, file=draft.file, line=draft.lines.get(path))


def _must(rule: str, wanted: Any) -> str:
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text",
             "array": "a list", "object": "a table"}  # fmt: skip
    if rule == "type":
        kinds = [wanted] if isinstance(wanted, str) else list(wanted)
        return "must be " + " or ".join(words.get(kind, kind) for kind in kinds)
    if rule == "enum":
        return "must be one of " + ", ".join(str(choice) for choice in wanted)
    bounds = {
        "minimum": "at least",
        "maximum": "at most",
        "exclusiveMinimum": "more than",
        "multipleOf": "a multiple of",
    }
    if rule in bounds:
        return f"must be {bounds[rule]} {wanted}"
    return (
        "must be a whole number or [width, height]" if wanted == SIZE["anyOf"] else "does not fit the format's schema"
    )
