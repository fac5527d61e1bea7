"""How a LoRA file's adapter was shaped, from its tensor names and shapes: module, ranks, network_args.

Block numbers: reference section 7.5. LyCORIS names: its 4.x tensors (lokr_w1, hada_w1_a, oft_blocks, ...).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from schemas.blocks import ATTENTION, BLOCKS
from schemas.weights import DOWNS, Header, LoraFacts, is_spatial, module_of, read_scalar

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
    if facts.style == "lycoris" or facts.algo != "lora":
        return _lycoris(header, facts)
    ranks = _ranks(header)
    shapes = {name: info.shape for name, info in header.tensors.items()}
    linear = {module: rank for module, rank in ranks.items() if not is_spatial(module, shapes)}
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


def _ranks(header: Header) -> dict[str, int]:
    return {
        name.removesuffix(ending): info.shape[0]
        for name, info in header.tensors.items()
        for ending in DOWNS
        if name.endswith(ending) and info.shape
    }


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
    alphas = Counter(
        read_scalar(header, f"{module}.alpha") for module in modules if f"{module}.alpha" in header.tensors
    )
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
    tails = {name[len(module_of(name) or "") :] for name in names if module_of(name)}
    algo = {"oft": "boft" if _depth(header, ".oft_blocks") == 4 else "diag-oft"}.get(facts.algo, facts.algo)
    dim, alpha, doubts = facts.dim, facts.alpha, []
    args = [f"algo={algo}", f"preset={_preset(header)}"]
    if facts.conv_dim is not None:
        args.append(f"conv_dim={facts.conv_dim}")
    if facts.conv_alpha is not None:
        args.append(f"conv_alpha={facts.conv_alpha:g}")
    if algo == "lokr":
        args += _lokr(header, tails)
        if dim is None:
            dim = FULL_MATRIX
            doubts.append("its factors are whole matrices: any rank from their size on gives the same")
    if algo in ("diag-oft", "boft"):
        sizes = Counter(info.shape[-1] for name, info in names.items() if name.endswith(".oft_blocks") and info.shape)
        dim = dim or (sizes.most_common(1)[0][0] if sizes else None)
        doubts.append("constraint is kept in alpha and not told apart from it")
    for mark, word in (
        (".dora_scale", "dora_wd=True"),
        (".rescale", "rescaled=True"),
        (".scalar", "use_scalar=True"),
        (".w_norm", "train_norm=True"),
    ):
        if any(name.endswith(mark) for name in names):
            args.append(word)
    if tails & {".lora_mid.weight", ".hada_t1", ".lokr_t2"}:
        args.append("use_tucker=True")
    return AdapterShape("lycoris.kohya", dim, alpha, tuple(args), tuple(doubts))


def _depth(header: Header, ending: str) -> int:
    return max((len(info.shape) for name, info in header.tensors.items() if name.endswith(ending)), default=0)


def _lokr(header: Header, tails: set[str]) -> list[str]:
    """factor where all modules show the same one, and whether the small factor is decomposed too."""
    small = {
        info.shape[0] for name, info in header.tensors.items() if name.endswith(".lokr_w1") and len(info.shape) == 2
    }
    args = [f"factor={max(small)}"] if len(small) == 1 else []
    if ".lokr_w1_a" in tails:
        args.append("decompose_both=True")
    return args


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
