"""Every name in our files against the tables by which other programs find the module (docs/interop.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas import TrainConfig
from schemas.interop import readings
from schemas.options import NetworkOptions
from schemas.rules.interop import kinds
from trainer.adapters import attach
from trainer.families import Models, Target, architecture, get, single_file
from trainer.families.ldm_keys import bare_text_path, open_clip_names, unet_name

FOLDER = Path(__file__).parents[1]
FACTS: dict[str, Any] = json.loads((FOLDER / "golden" / "interop.json").read_text(encoding="utf-8"))
PAGE = (FOLDER.parent / "docs" / "interop.md").read_text(encoding="utf-8")
FAMILIES = ("sd15", "sd2", "sdxl")
TOOLS = tuple(FACTS["tools"])
PROGRAMS = {"a1111": "A1111", "comfyui": "ComfyUI", "invokeai": "InvokeAI"}
TEXT = re.compile(r"lora_(te[12]?)_text_model_encoder_layers_(\d+)_(\w+)")
Full = Callable[[str], tuple[Models, list[Target]]]


@pytest.fixture(scope="module")
def full() -> Full:
    """full(family) -> the full-size model without weights, and its targets."""
    made: dict[str, tuple[Models, list[Target]]] = {}

    def build(family: str) -> tuple[Models, list[Target]]:
        if family not in made:
            configs = architecture.shipped(family)
            names = [name for name in ("unet", "text_encoder", "text_encoder_2") if name in configs]
            parts = [single_file.Part(name, configs[name], lambda path: path).build() for name in names]
            models = Models(family, parts[0], parts[0], tuple(parts[1:]), ())
            made[family] = models, get(family).targets(models)
        return made[family]

    return build


def theirs(tool: str, family: str, key: str) -> str | None:
    """The module that a program finds for a key, "_" for "."; None if it finds none."""
    rules = FACTS["tools"][tool]
    text = TEXT.fullmatch(key)
    if text:
        part, layer, place = text.groups()
        pattern, table = rules["text"][family].get(part, (None, None))
        inside = FACTS["text"].get(table, {}).get(place)
        return pattern.format(layer, inside) if pattern and inside else None
    path = key.removeprefix("lora_unet_")
    if tool == "a1111" and rules["unet"][family] == "as written":
        path = path.removeprefix("oft_unet_")  # tried as it stands, in front of no table
    if path == key:
        return None
    if rules["unet"][family] == "as written":
        return str(rules["unet_module"].format(path))
    found = _by_block(FACTS["blocks"]["sdxl" if family == "sdxl" else "sd"], path, to_ldm=family != "sdxl")
    return found and rules["unet_module"].format(found)


def _by_block(blocks: dict[str, str], path: str, *, to_ldm: bool) -> str | None:
    for block, place in blocks.items():
        if path == block:
            return place
        if path.startswith(f"{block}_"):
            rest = path.removeprefix(f"{block}_")
            if "resnets" in (block if to_ldm else place):
                names = FACTS["resnet"] if to_ldm else {new: old for old, new in FACTS["resnet"].items()}
                if rest not in names:
                    return None
                rest = names[rest]
            return f"{place}_{rest}"
    return None


def module_in(tool: str, target: Target, models: Models) -> str:
    """The same module as that program calls it, from the path in our model and the layout of checkpoints."""
    config: Any = models.unet.config
    if target.part == "unet":
        up = ["CrossAttn" in kind for kind in config.up_block_types]
        ldm = unet_name(target.path, layers=config.layers_per_block, attention_up=up)
        return (target.path if tool == "invokeai" else f"diffusion_model.{ldm}").replace(".", "_")
    path = "text_model." + bare_text_path(target.path)
    open_clip = target.part == "te2" or models.family == "sd2"
    if tool == "comfyui":
        name = "clip_l" if not open_clip else "clip_h" if models.family == "sd2" else "clip_g"
        path = f"{name}.transformer.{path}"
    elif tool == "a1111" and open_clip:
        stored = open_clip_names("model.")(f"{path}.weight").name
        path = re.sub(r"\.in_proj_weight|\.weight", "", stored)  # q, k and v are one module there
    elif tool == "a1111":
        path = f"transformer.{path}"
    if tool == "a1111" and models.family == "sdxl":
        path = f"{int(target.part == 'te2')}.{path}"
    return path.replace(".", "_")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_module_is_found_and_is_the_one_we_trained(tool: str, family: str, full: Full) -> None:
    models, targets = full(family)
    found = {target.key: theirs(tool, family, target.key) for target in targets}
    assert found == {target.key: module_in(tool, target, models) for target in targets}
    kinds = {target.place for target in targets}
    assert kinds == {"text", "transformer", "resnet", "sampler"}


NETWORKS: dict[str, dict[str, Any]] = {
    "networks.lora": {"network_module": "networks.lora", "network_args": ("conv_dim=2", "conv_alpha=1")},
    "networks.dylora": {"network_module": "networks.dylora", "network_args": ("unit=2",)},
    "networks.lora_fa": {"network_module": "networks.lora_fa"},
    "networks.loha": {"network_module": "networks.loha", "network_args": ("conv_dim=2",)},
    "networks.lokr": {"network_module": "networks.lokr", "network_args": ("factor=4", "conv_dim=2")},
    "networks.oft": {"network_module": "networks.oft"},
    "DoRA": {"network_module": "lycoris.kohya", "network_args": ("algo=locon", "dora_wd=True")},
    **{
        f"LyCORIS {algo}": {"network_module": "lycoris.kohya", "network_args": (f"algo={algo}", *more)}
        for algo, more in {
            "locon": ("conv_dim=2", "use_tucker=True"),
            "loha": ("conv_dim=2", "use_tucker=True"),
            "lokr": ("conv_dim=2", "factor=4", "use_tucker=True"),
            "dylora": ("block_size=2",),
            "glora": (),
            "full": (),
            "diag-oft": (),
            "ia3": (),
        }.items()
    },
}


def names_written(models: Models, targets: list[Target], options: dict[str, Any]) -> set[tuple[str, str]]:
    """(module, ending) of every tensor."""
    adapter = attach(models, targets, NetworkOptions(**{"network_dim": 4, "network_alpha": 1.0, **options}))
    return {(name.partition(".")[0], name.partition(".")[2]) for name in adapter.state_dict()}


def readers(family: str, written: set[tuple[str, str]]) -> list[str]:
    """The programs that find every module and read every tensor."""
    found = []
    for tool in TOOLS:
        read = {ending for _, ending in written} <= set(FACTS["tools"][tool]["endings"])
        if read and all(theirs(tool, family, key) for key, _ in written):
            found.append(tool)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_of_a_full_size_model_is_read_everywhere(family: str, full: Full) -> None:
    models, targets = full(family)
    with torch.device("meta"):
        written = names_written(models, targets, NETWORKS["networks.lora"])
    assert len(written) == 3 * len(targets)
    assert readers(family, written) == list(TOOLS)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_who_reads_which_network(family: str, kind: str, base_models: dict[str, Path]) -> None:
    config = TrainConfig(pretrained_model_name_or_path=str(base_models[family]))
    models = get(family).load(config, dtype=torch.float32)
    written = names_written(models, get(family).targets(models), NETWORKS[kind])
    assert len(written) > 100
    found, rows = set(readers(family, written)), kinds(TrainConfig(**NETWORKS[kind]))
    read = {tool: readings(rows, family)[PROGRAMS[tool]].verdict for tool in TOOLS}
    # what is read as trained is found whole; what is known by no name is never read
    assert {tool for tool in TOOLS if read[tool] == "right"} <= found
    assert all(read[tool] != "right" for tool in TOOLS if tool not in found)
    if kind in ("networks.oft", "LyCORIS diag-oft"):
        assert found == {tool for tool in TOOLS if read[tool] == "right"}


def test_a_wrong_name_is_not_found() -> None:
    for key in ("lora_unet_down_blocks_3_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_fc1", "unet_x"):
        assert theirs("a1111", "sd15", key) is None
    assert theirs("invokeai", "sdxl", "lora_unet_input_blocks_1_1_proj_in") is None
    assert theirs("a1111", "sd15", "oft_unet_down_blocks_0_attentions_0_proj_in") is None


def test_the_page_shows_these_tables() -> None:
    for table in (*FACTS["blocks"].values(), FACTS["resnet"], FACTS["text"]["open_clip"]):
        for ours, name in table.items():
            assert f"| `{ours}` | `{name}` |" in PAGE
    for tool in FACTS["tools"].values():
        for parts in tool["text"].values():
            for pattern, _ in parts.values():
                assert f"`{pattern}`" in PAGE
    for ending in {ending for tool in FACTS["tools"].values() for ending in tool["endings"]}:
        told = ("yes" if ending in FACTS["tools"][tool]["endings"] else "no" for tool in TOOLS)
        assert f"| `{ending}` | {' | '.join(told)} |" in PAGE
    assert all(source.split()[0] in PAGE for source in FACTS["sources"].values())
