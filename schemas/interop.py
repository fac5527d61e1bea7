"""How other programs read our LoRA files, by kind: rows that plan, inspect, report and docs/interop.md loop over.

Measured with each program's own code on key sets of full-size SD1.5 and SDXL with random weights: every name looked
up, the mathematics of 21 to 88 modules compared with W + dW in float32. SD2's names are SD1.5's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from schemas.files.weights import Header, LoraFacts, read_scalar

PROGRAMS: Mapping[str, str] = {
    "ComfyUI": "0.3.64", "A1111": "Lora extension of July 2024", "Forge": "", "InvokeAI": "6.14-alpha",
    "diffusers": "0.42.1",
}  # fmt: skip
Verdict = Literal["right", "wrong", "partly", "nothing", "refused", "unknown"]
WORDS: Mapping[Verdict, tuple[str, str]] = {  # alone, and before the programs' names
    "right": ("as trained", "as trained in"), "wrong": ("wrong", "wrong in"), "partly": ("in part", "in part in"),
    "nothing": ("without effect", "without effect in"), "refused": ("refused", "refused by"),
    "unknown": ("not measured", "not measured in"),
}  # fmt: skip
WORST: tuple[Verdict, ...] = ("wrong", "partly", "nothing", "refused", "unknown", "right")


@dataclass(frozen=True)
class Reading:
    """How one program reads a kind; `how` says what goes wrong."""

    verdict: Verdict
    how: str = ""


@dataclass(frozen=True)
class Kind:
    """One kind of adapter: what it is called, and how each program of PROGRAMS reads it, in their order.

    A program that reads families differently has one reading a family, SD2's being SD1.5's. `advice` is what to train
    instead, for those who use a program that does not read it.
    """

    title: str
    reads: tuple[Reading | Mapping[str, Reading], ...]
    advice: str = ""
    source: str = field(default="", compare=False)

    def reading(self, program: str, family: str | None) -> Reading:
        found = self.reads[list(PROGRAMS).index(program)]
        if isinstance(found, Reading):
            return found
        place = "sdxl" if family == "sdxl" else "sd15"
        return found[place] if family else min(found.values(), key=lambda one: WORST.index(one.verdict))


RIGHT, REFUSED, UNKNOWN = Reading("right"), Reading("refused"), Reading("unknown")
DROPPED = Reading("wrong", "dora_scale is dropped with a warning")
_COLUMNS = Reading("wrong", "the norm is taken of the input columns: off by 1.5 to 180 times the change")
_BASE = Reading("wrong", "the norm of W is taken for that of W + dW: off by 2 to 10 %")
_LINEAR = Reading("partly", "linear layers only; convolutions raise")
_PRODUCT = "off by up to 41 times the change"
_USE_LOCON = "networks.lora is read everywhere"

KINDS: Mapping[str, Kind] = {
    "lora": Kind("LoRA, LoCon, LoRA-FA, DyLoRA", (RIGHT,) * 5, source="text encoders and U-Net, whole and equal"),
    "loha": Kind("LoHa, also with Tucker", (RIGHT, RIGHT, RIGHT, RIGHT, REFUSED), _USE_LOCON),
    "lokr": Kind(
        "LoKr",
        (RIGHT, RIGHT, RIGHT,
         {"sd15": Reading("nothing", "a LoKr of SD1.5 is recognised by a whole second factor only"),
          "sdxl": RIGHT}, REFUSED),
        "full_matrix=True in network_args keeps that factor whole",
        "InvokeAI looks a LoKr key up without its dot",
    ),
    "lokr-whole": Kind("LoKr with a whole second factor", (RIGHT, RIGHT, RIGHT, RIGHT, REFUSED), _USE_LOCON),
    "dora": Kind(
        "DoRA, LyCORIS' default (`wd_on_output=True`)",
        (_BASE, _COLUMNS, _BASE, _COLUMNS, DROPPED),
        "wd_on_output=False in network_args is the form that ComfyUI, A1111, Forge and InvokeAI read as trained",
        "dora_scale is [out, 1]",
    ),
    "dora-input": Kind(
        "DoRA, `wd_on_output=False`", (RIGHT, RIGHT, RIGHT, RIGHT, DROPPED),
        "diffusers has no form of it", "dora_scale is [1, in]",
    ),
    "product-dora": Kind(
        "LoHa or LoKr with DoRA",
        (Reading("wrong", "off by up to 60 %"), Reading("wrong", _PRODUCT), UNKNOWN,
         Reading("refused", "KeyError"), UNKNOWN),
        "leave dora_wd out, or use algo=locon with dora_wd=True wd_on_output=False",
    ),
    "oft": Kind(
        "networks.oft",
        (Reading("nothing", "none of its names is known"),
         {"sd15": Reading("nothing", "none of SD1.5's names is known"), "sdxl": RIGHT}, REFUSED,
         Reading("refused", "not recognised"), REFUSED),
        _USE_LOCON, "modules are called oft_unet_..., which A1111 alone tries, where the rest is as in checkpoints",
    ),
    "diag-oft": Kind(
        "LyCORIS diag-oft", (RIGHT, RIGHT, REFUSED, Reading("refused", "not recognised"), REFUSED), _USE_LOCON,
    ),
    "diag-oft-bounded": Kind(
        "LyCORIS diag-oft with `constraint` or `rescaled`",
        (Reading("wrong", "alpha itself is taken for the bound, rescale is never applied"), RIGHT, REFUSED,
         Reading("refused", "not recognised"), REFUSED), "leave constraint and rescaled out",
    ),
    "boft": Kind("LyCORIS boft", (RIGHT, RIGHT, UNKNOWN, UNKNOWN, UNKNOWN)),
    "glora": Kind(
        "LyCORIS glora",
        (RIGHT, Reading("nothing", "every module raises, nothing is applied"), RIGHT,
         Reading("refused", "not recognised"), REFUSED), _USE_LOCON,
    ),
    "ia3": Kind(
        "LyCORIS ia3",
        (Reading("nothing", "none of its tensors is known"), _LINEAR, REFUSED, _LINEAR, REFUSED), _USE_LOCON,
    ),
    "full": Kind(
        "LyCORIS full, `train_norm`", (RIGHT, RIGHT, UNKNOWN, RIGHT, {"sd15": REFUSED, "sdxl": UNKNOWN}),
        "leave train_norm out, or use networks.lora",
    ),
}  # fmt: skip


def kinds_of_file(header: Header, facts: LoraFacts) -> tuple[str, ...]:
    """The kinds that a LoRA file's tensors show."""
    shapes = {name.partition(".")[2]: info.shape for name, info in header.tensors.items()}
    scale, algo = shapes.get("dora_scale"), facts.algo
    dora = None if scale is None else "input" if len(scale) > 1 and scale[0] == 1 and scale[1] > 1 else "output"
    bounded = "rescale" in shapes
    if algo == "oft" and not any(name.startswith("oft_unet") for name in header.tensors):
        algo = "boft" if len(shapes.get("oft_blocks", ())) == 4 else "diag-oft"
        bound = next((name for name in header.tensors if name.endswith(".alpha")), None)
        bounded = bounded or (bound is not None and read_scalar(header, bound) > 0)
    norms = ("full",) if "w_norm" in shapes else ()
    if facts.style in ("peft", "diffusers"):
        return ()  # other names, which were not measured
    return norms if algo == "norm" else (kind(algo, dora, whole="lokr_w2_b" not in shapes, bounded=bounded), *norms)


def kind(algo: str, dora: str | None, *, whole: bool = False, bounded: bool = False) -> str:
    """The row of an algorithm (LyCORIS' name, or oft), by the side on which a DoRA scales ("input" or "output")."""
    if dora and algo in ("loha", "lokr"):
        return "product-dora"
    if algo in ("lora", "locon", "dylora"):
        return {"output": "dora", "input": "dora-input"}.get(dora or "", "lora") if algo != "dylora" else "lora"
    more = {"lokr": "-whole" if whole else "", "diag-oft": "-bounded" if bounded else ""}
    return algo + more.get(algo, "")


def readings(kinds: Iterable[str], family: str | None) -> dict[str, Reading]:
    """program -> how it reads a file of these kinds: the worst of them."""
    known = [KINDS[kind] for kind in kinds]
    found = {program: [kind.reading(program, family) for kind in known] for program in PROGRAMS} if known else {}
    return {name: min(all_of, key=lambda one: WORST.index(one.verdict)) for name, all_of in found.items()}


def sentences(found: Mapping[str, Reading]) -> Iterator[str]:
    """The readings in words: programs that read alike together, in the order of PROGRAMS."""
    groups: dict[Reading, list[str]] = {}
    for program, reading in found.items():
        groups.setdefault(reading, []).append(program)
    for reading, programs in groups.items():
        how = f" ({reading.how})" if reading.how else ""
        yield f"{WORDS[reading.verdict][1]} {', '.join(programs)}{how}"


def page() -> str:
    """The generated part of docs/interop.md."""
    lines = [f"| Network | Family | {' | '.join(PROGRAMS)} |", f"|---|---|{'---|' * len(PROGRAMS)}"]
    notes: dict[str, int] = {}
    for kind in KINDS.values():
        split = any(not isinstance(one, Reading) for one in kind.reads)
        for family, name in (("sd15", "SD1.5, SD2"), ("sdxl", "SDXL")) if split else (("sd15", "all"),):
            cells = [_cell(kind.reading(program, family), notes) for program in PROGRAMS]
            lines.append(f"| {kind.title} | {name} | {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {how}" for how, number in notes.items()), ""]
    lines += [f"- {kind.title}: {kind.source}." for kind in KINDS.values() if kind.source]
    versions = ", ".join(f"{program} ({version})" if version else program for program, version in PROGRAMS.items())
    return "\n".join([f"Programs: {versions}.", "", *lines])


def _cell(reading: Reading, notes: dict[str, int]) -> str:
    if not reading.how:
        return WORDS[reading.verdict][0]
    return f"{WORDS[reading.verdict][0]} [{notes.setdefault(reading.how, len(notes) + 1)}]"
