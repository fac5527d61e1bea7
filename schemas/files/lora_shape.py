"""How a LoRA file's adapter was shaped, from its tensor names and shapes: module, ranks, network_args.

Block numbers: reference section 7.5. LyCORIS names: its 4.x tensors (lokr_w1, hada_w1_a, oft_blocks, ...).
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from schemas.blocks import ATTENTION, BLOCKS
from schemas.files.weights import (
    Header,
    LoraFacts,
    is_wide,
    module_of,
    module_ranks,
    read_scalars,
    spatial_modules,
)

DIFFUSERS = re.compile(r"(down|up)_blocks_(\d+)_(attentions|resnets|downsamplers|upsamplers)_(\d+)")
ORIGINAL = re.compile(r"(input|middle|output)_blocks?_(\d+)")
FULL_MATRIX = 100000  # a rank so large that LyCORIS keeps a factor whole
ATTENTION_PARTS = ("attn1_to_q", "attn1_to_k", "attn1_to_v", "attn1_to_out")
TRANSFORMER_PARTS = ("proj_in", "proj_out", "ff_net_0", "ff_net_2")


@dataclass(frozen=True)
class AdapterShape:
    """`network_module`, rank, alpha and network_args that give such tensors; `doubts` is what they do not tell.

    `alpha` is None where the file keeps none; the usual scale is then 1, alpha = rank.
    """

    module: str
    dim: int | None
    alpha: float | None
    network_args: tuple[str, ...]
    doubts: tuple[str, ...] = ()


def block_of(module: str, family: str) -> int | None:
    """The block number of a U-Net module (0 to 24 for SD, 0 to 22 for SDXL); None for other modules."""
    name = module.replace(".", "_")
    original = ORIGINAL.search(name)
    if original:
        return {"input": 1, "middle": 10, "output": 13}[original[1]] + int(original[2])
    if "mid_block" in name:
        if family != "sdxl":
            return 12
        return 11 if "attentions" in name else 10 if "resnets_0" in name else 12
    found = DIFFUSERS.search(name)
    if not found:
        return None
    way, block, kind, place = found[1], int(found[2]), found[3], int(found[4])
    inside = 2 if kind.endswith("samplers") else place
    if family == "sdxl":
        return 2 + 3 * block + inside if way == "down" else 13 + 3 * block + inside
    return (1 if way == "down" else 13) + 3 * block + inside


def adapter_shape(header: Header, facts: LoraFacts) -> AdapterShape:
    """What the tensors of a LoRA file tell about the network that made them."""
    if facts.style == "lycoris" or facts.algo != "lora" or _ends(filter(None, map(module_of, header.tensors))):
        return _lycoris(header, facts)
    shapes = {name: info.shape for name, info in header.tensors.items()}
    ranks = module_ranks(shapes)
    spatial = spatial_modules(shapes)
    linear = {module: rank for module, rank in ranks.items() if module not in spatial}
    dim, alpha, args, doubts = facts.dim, facts.alpha, [], []
    blocks = _by_block(linear, facts.family)
    text = [rank for module, rank in linear.items() if block_of(module, facts.family) is None]
    if blocks and facts.family in BLOCKS:
        unet_dims = {rank for ranks_of in blocks.values() for rank in ranks_of}
        attention = ATTENTION["sdxl" if facts.family == "sdxl" else "sd"]
        most = len(attention & blocks.keys()) * 2 > len(attention)
        text_dim = Counter(text).most_common(1)[0][0] if text else None
        if len(unet_dims) > 1 or (most and attention - blocks.keys()) or (text_dim not in (None, *unet_dims)):
            dim = text_dim or dim
            alpha = _alpha_of([name for name in linear if linear[name] == dim], header)
            args += _block_lists(header, blocks, linear, facts.family, 0 if most else dim or 4)
        if any(len(set(ranks_of)) > 1 for ranks_of in blocks.values()):
            doubts.append("ranks differ inside blocks, as after a resize; the most frequent one of each block is taken")
    elif len(set(linear.values())) > 1:
        doubts.append(f"ranks differ ({_span(linear.values())}); the most frequent one is taken")
    if facts.conv_dim is not None:
        args.append(f"conv_dim={facts.conv_dim}")
        args.append(f"conv_alpha={facts.conv_alpha if facts.conv_alpha is not None else facts.conv_dim:g}")
    if facts.unet:
        doubts += _left_out(header)
    return AdapterShape("networks.lora", dim, alpha, tuple(args), tuple(doubts))


def _span(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return f"{found[0]} to {found[-1]}"


def _by_block(ranks: Mapping[str, int], family: str) -> dict[int, list[int]]:
    blocks: dict[int, list[int]] = defaultdict(list)
    for module, rank in ranks.items():
        block = block_of(module, family)
        if block is not None:
            blocks[block].append(rank)
    return blocks


def _block_lists(
    header: Header, blocks: Mapping[int, list[int]], ranks: Mapping[str, int], family: str, absent: int
) -> list[str]:
    """block_dims and block_alphas; `absent` is the rank of blocks without modules (0 adapts nothing there)."""
    dims, alphas = [], []
    members: dict[int, list[str]] = defaultdict(list)
    for module in ranks:
        block = block_of(module, family)
        if block is not None:
            members[block].append(module)
    for block in range(BLOCKS[family]):
        rank = Counter(blocks[block]).most_common(1)[0][0] if block in blocks else absent
        alpha = _alpha_of([name for name in members.get(block, ()) if ranks[name] == rank], header)
        dims.append(rank)
        alphas.append(alpha if alpha is not None else float(rank or 1))
    return ["block_dims=" + ",".join(map(str, dims)), "block_alphas=" + ",".join(f"{alpha:g}" for alpha in alphas)]


def _alpha_of(modules: Iterable[str], header: Header) -> float | None:
    names = (f"{module}.alpha" for module in modules)
    alphas = Counter(read_scalars(header, [name for name in names if name in header.tensors]).values())
    return alphas.most_common(1)[0][0] if alphas else None


def _left_out(header: Header) -> list[str]:
    """Parts of a transformer block that networks.lora would adapt and this file does not."""
    names = [module_of(name) for name in header.tensors if not name.endswith(".alpha")]
    folded = {name.replace(".", "_") for name in names if name and "transformer_blocks" in name}
    if not any(part in name for name in folded for part in ATTENTION_PARTS):
        return []
    whole = {name.replace(".", "_") for name in names if name}
    missing = [part for part in TRANSFORMER_PARTS if not any(part in name for name in whole)]
    said = f"it adapts no {', '.join(missing)}; networks.lora adapts all linear layers of a transformer"
    return [said] if missing else []


def _lycoris(header: Header, facts: LoraFacts) -> AdapterShape:
    names = header.tensors
    modules = {module for name in names if (module := module_of(name))}
    if all(module.startswith("oft_unet") for module in modules):
        return _oft(header, modules)
    tails = {name[len(module_of(name) or "") :] for name in names if module_of(name)}
    algo = {"oft": "boft" if _depth(header, ".oft_blocks") == 4 else "diag-oft", "norm": "full"}
    args, doubts, dim, alpha = [], [], facts.dim, facts.alpha
    kind = algo.get(facts.algo, facts.algo)
    preset = _preset(header)
    module = "lycoris.kohya"
    if kind in ("loha", "lokr") and facts.family in ("sd15", "sd2") and not _ends(modules):
        module = f"networks.{kind}"  # LyCORIS' own presets take ends of the U-Net too
    else:
        args += [f"algo={kind}", f"preset={preset}"]
    if facts.conv_dim is not None:
        args.append(f"conv_dim={facts.conv_dim}")
    if facts.conv_alpha is not None:
        args.append(f"conv_alpha={facts.conv_alpha:g}")
    if kind == "lokr":
        args += _lokr(header, modules)
        if dim is None:
            dim = FULL_MATRIX
            doubts.append("its factors are whole matrices: any rank from their size on gives the same")
    if kind in ("diag-oft", "boft"):
        sizes = Counter(info.shape[-1] for name, info in names.items() if name.endswith(".oft_blocks") and info.shape)
        dim = sizes.most_common(1)[0][0] if sizes else None
        limit = _alpha_of(modules, header)
        args += [f"constraint={limit:g}"] if limit else []
    for mark, word in (
        (".dora_scale", "dora_wd=True"),
        (".rescale", "rescaled=True"),
        (".scalar", "use_scalar=True"),
        (".w_norm", "train_norm=True"),
    ):
        if mark in tails:
            args.append(word)
    if dora_on_input(header):
        args.append("wd_on_output=False")
    if tails & {".lora_mid.weight", ".hada_t1", ".lokr_t2"}:
        args.append("use_tucker=True")
    return AdapterShape(module, dim, alpha, tuple(args), tuple(doubts))


def _oft(header: Header, modules: set[str]) -> AdapterShape:
    """networks.oft: as many blocks as its rank, the constraint in alpha."""
    counts = Counter(info.shape[0] for name, info in header.tensors.items() if name.endswith(".oft_blocks"))
    transformer = [module for module in modules if "transformer_blocks" in module or "_proj_" in module]
    args = ["enable_conv=true"] if len(transformer) < len(modules) else []
    if any("attn1_" not in module and "attn2_" not in module for module in transformer):
        args.append("enable_all_linear=true")
    return AdapterShape("networks.oft", counts.most_common(1)[0][0], _alpha_of(modules, header), tuple(args))


def dora_on_input(header: Header) -> bool:
    """Whether a DoRA scales the inputs (wd_on_output=False): dora_scale is [1, in, ...] instead of [out, 1, ...]."""
    shapes = [info.shape for name, info in header.tensors.items() if name.endswith(".dora_scale")]
    return any(len(shape) > 1 and shape[0] == 1 and shape[1] > 1 for shape in shapes)


def _ends(modules: Iterable[str]) -> bool:
    """Whether the first and last layers of SD's U-Net are adapted, as LyCORIS' presets do and networks.* do not."""
    return any(module.endswith(("_conv_in", "_conv_out", "_time_embedding_linear_1")) for module in modules)


def _depth(header: Header, ending: str) -> int:
    return max((len(info.shape) for name, info in header.tensors.items() if name.endswith(ending)), default=0)


def _lokr(header: Header, modules: Iterable[str]) -> list[str]:
    """factor, where one fits all modules, and how both factors were made."""
    shapes = {name: info.shape for name, info in header.tensors.items()}
    args = ["decompose_both=True"] if any(name.endswith(".lokr_w1_a") for name in shapes) else []
    sides = [found for module in modules if (found := _factors(module, shapes))]
    tried = sorted({size for pairs in sides for pair in pairs for size in pair})
    for factor in (-1, *tried):
        for more in ([], ["unbalanced_factorization=True"]):
            if all(_fits(pairs, factor, bool(more)) for pairs in sides):
                return [f"factor={factor}", *more, *args]
    return args


def _factors(module: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """((out1, out2), (in1, in2)) of a LoKr module."""

    def shape(ending: str) -> tuple[int, ...]:
        return shapes.get(f"{module}.lokr_{ending}", ())

    one, two = shape("w1") or (*shape("w1_a")[:1], *shape("w1_b")[1:]), shape("w2")
    if not two:
        tucker = bool(shape("t2"))
        kernel = 9 if is_wide(module) and not tucker else 1  # flattened into the columns
        two = (*shape("w2_a")[1 if tucker else 0 :][:1], *(size // kernel for size in shape("w2_b")[1:]))
    return ((one[0], two[0]), (one[1], two[1])) if len(one) > 1 and len(two) > 1 else None


def _fits(pairs: tuple[tuple[int, int], tuple[int, int]], factor: int, unbalanced: bool) -> bool:
    (out, rest), (into, more) = pairs
    found = factorization(out * rest, factor)
    return (found[::-1] if unbalanced else found) == (out, rest) and factorization(into * more, factor) == (into, more)


def factorization(size: int, factor: int) -> tuple[int, int]:
    """LyCORIS' split of a width into two, the smaller first: by `factor` where it divides, else the most even below."""
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    most = size if factor < 0 else factor
    small = max(one for one in range(1, min(most, math.isqrt(size)) + 1) if size % one == 0)
    return small, size // small


def _preset(header: Header) -> str:
    """The narrowest of LyCORIS's presets that covers the U-Net's modules."""
    modules = {(module_of(name) or "").replace(".", "_") for name in header.tensors}
    unet = [name for name in modules if block_of(name, "sd15") is not None]
    if any(name.endswith(("_conv1", "_conv2", "_in_layers_2", "_out_layers_3", "_op", "_conv")) for name in unet):
        return "full"
    if any(name.endswith(("_time_emb_proj", "_emb_layers_1")) for name in unet):
        return "full-lin"
    if not unet or any("_ff_net_" in name or "_proj_in" in name for name in unet):
        return "attn-mlp"
    return "attn-only"
