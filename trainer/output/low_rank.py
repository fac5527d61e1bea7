"""ΔW of adapter modules as factors or as a matrix, and the nearest ΔW of a lower rank (Eckart and Young 1936)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from schemas.files.lora_shape import kronecker_sides
from schemas.files.weights import is_wide
from trainer.adapters.merge import difference

WHOLE = 1024  # up to this smaller side the decomposition of a matrix is exact; above, of the ranks asked for (Halko)
SPARE, ROUNDS = 16, 6  # extra directions and power iterations of the randomised decomposition
ROUNDING = 1e-7  # singular values below this share of the largest are rounding noise


@dataclass(frozen=True)
class Factors:
    """ΔW = scale · up @ down: up [out, r], down [r, columns]; `kernel` is (in, k, k) or (in,) of a column."""

    up: Tensor
    down: Tensor
    scale: float
    kernel: tuple[int, ...]


@dataclass(frozen=True)
class Parts:
    """U [out, k], s [k], V [k, columns] of a ΔW with Frobenius norm `norm`."""

    u: Tensor
    s: Tensor
    v: Tensor
    norm: float
    kernel: tuple[int, ...]


def factors(own: Mapping[str, Tensor]) -> Factors:
    """Of a LoRA, LoCon or Tucker LoCon by the endings of its tensors; float64, so that products round nowhere."""
    up, down = own["lora_up.weight"].double(), own["lora_down.weight"].double()
    rank = down.shape[0]
    mid = own.get("lora_mid.weight")
    if mid is not None:  # up · (mid with down put in): the core's first axis is the rank of up
        rank = mid.shape[0]
        down = torch.einsum("abkl,bi->aikl", mid.double(), down.flatten(1))
    alpha = float(own["alpha"]) if "alpha" in own else float(own["lora_down.weight"].shape[0])
    scale = alpha / own["lora_down.weight"].shape[0]
    return Factors(up.reshape(up.shape[0], rank), down.flatten(1), scale, tuple(down.shape[1:]))


@torch.no_grad()
def matrix(key: str, own: Mapping[str, Tensor]) -> Tensor:
    """ΔW of a LoHa, LoKr or whole difference in float32, which need no base model to be known."""
    if "diff" in own:
        return own["diff"].float()
    out, columns = _sides(own)
    wide = is_wide(key)
    base: Any = nn.Conv2d(columns // 9, out, 3, bias=False) if wide else nn.Linear(columns, out, bias=False)
    nn.init.zeros_(base.weight)
    return difference(key, base, {f"{key}.{tail}": tensor for tail, tensor in own.items()}, 1.0).view_as(base.weight)


def _sides(own: Mapping[str, Tensor]) -> tuple[int, int]:
    if "hada_t1" in own:
        return own["hada_w1_a"].shape[1], own["hada_w1_b"].shape[1] * math.prod(own["hada_t1"].shape[2:])
    if "hada_w1_a" in own:
        return own["hada_w1_a"].shape[0], own["hada_w1_b"].shape[1]
    return kronecker_sides({name: tuple(tensor.shape) for name, tensor in own.items()})


def decompose(terms: Sequence[tuple[float, Factors | Tensor]], most: int | None) -> Parts:
    """The singular values of Σ weight · ΔW; all of them, or (of large matrices) the first `most`."""
    ranks = sum(term.up.shape[1] if isinstance(term, Factors) else 10**9 for _, term in terms)
    first = terms[0][1]
    out = first.up.shape[0] if isinstance(first, Factors) else first.shape[0]
    kernel = first.kernel if isinstance(first, Factors) else tuple(first.shape[1:])
    if ranks < min(out, math.prod(kernel)):
        ups = torch.cat([weight * term.scale * term.up for weight, term in terms], 1)  # type: ignore[union-attr]
        downs = torch.cat([term.down for _, term in terms])  # type: ignore[union-attr]
        q, r = torch.linalg.qr(ups)
        p, t = torch.linalg.qr(downs.T)
        u, s, v = torch.linalg.svd(r @ t.T)
        return Parts(q @ u, s, v @ p.T, float(s.norm()), kernel)
    whole = sum((weight * dense(term) for weight, term in terms), torch.zeros(()))
    return _of_matrix(whole.flatten(1), most, kernel)


def dense(term: Factors | Tensor) -> Tensor:
    """ΔW [out, ...] itself."""
    if isinstance(term, Factors):
        return (term.scale * (term.up @ term.down)).reshape(term.up.shape[0], *term.kernel)
    return term


def _of_matrix(whole: Tensor, most: int | None, kernel: tuple[int, ...]) -> Parts:
    whole = whole.to("cuda" if torch.cuda.is_available() else "cpu")
    small = min(whole.shape)
    if most is None or small <= WHOLE or most + SPARE > small // 2:
        u, s, v = torch.linalg.svd(whole, full_matrices=False)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same file each time
            u, s, v = torch.svd_lowrank(whole, q=most + SPARE, niter=ROUNDS)
        v = v.T
    norm = float(torch.linalg.matrix_norm(whole.double()))
    return Parts(u.cpu(), s.cpu(), v.cpu(), norm, kernel)


def rank_for(parts: Parts, *, rank: int | None, keep: float | None) -> int:
    """The rank asked for, or the least that keeps `keep` of the Frobenius norm; never ranks of rounding noise."""
    telling = int((parts.s > ROUNDING * float(parts.s[0] if len(parts.s) else 0)).sum())
    if keep is not None:
        held = parts.s.double().square().cumsum(0).sqrt()
        enough = int((held < keep * parts.norm * (1 - 1e-12)).sum()) + 1
        telling = min(telling, enough)
    return max(1, min(telling, rank or telling))


def share(parts: Parts, rank: int) -> float:
    """Of the Frobenius norm, what the first `rank` singular values hold."""
    return min(1.0, float(parts.s[:rank].double().norm()) / parts.norm) if parts.norm else 1.0


def lora_of(parts: Parts, rank: int, scale: float) -> dict[str, Tensor]:
    """kohya's tensors of the nearest ΔW of that rank, both factors of the same size; alpha / rank is `scale`."""
    root = (parts.s[:rank] / scale).sqrt()
    up, down = parts.u[:, :rank] * root, root[:, None] * parts.v[:rank]
    ones = (1,) * (len(parts.kernel) - 1)
    return {
        "lora_up.weight": up.reshape(up.shape[0], rank, *ones),
        "lora_down.weight": down.reshape(rank, *parts.kernel),
        "alpha": torch.tensor(scale * rank, dtype=torch.float64),
    }


def joined(terms: Sequence[tuple[float, Factors]]) -> dict[str, Tensor]:
    """kohya's tensors of Σ weight · ΔW exactly: factors side by side, weights and scales within the up matrix."""
    ups = torch.cat([weight * term.scale * term.up for weight, term in terms], 1)
    kernel = terms[0][1].kernel
    ones = (1,) * (len(kernel) - 1)
    downs = torch.cat([term.down for _, term in terms])
    rank = len(downs)
    return {
        "lora_up.weight": ups.reshape(*ups.shape, *ones),
        "lora_down.weight": downs.reshape(rank, *kernel),
        "alpha": torch.tensor(float(rank), dtype=torch.float64),
    }
