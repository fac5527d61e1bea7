"""Images that show the same, found among many: equal, recompressed, recoloured, cropped, or mirrored.

Three stages. Descriptors: of each image, and of what crops of it and its mirror image would show, the gradients of a
12 x 12 thumbnail, normalised. Candidates: descriptors that are near in angle, found within the nearest of about sqrt(N)
random centres (an inverted file), so that the work grows with N * sqrt(N). Proof: the crop that a candidate claims is
shifted until the two fit best, and the correlation of their grey values decides.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

GREY = 48  # sides of the grey thumbnails that are compared
SHADES = 16  # sides of the colour thumbnails, for images without structure
CELLS = 8  # cells of a descriptor a side
FINE = 24  # cells of the proof a side
AXES = 40  # numbers that are left of a descriptor
SAMPLE = 4000  # images by which those are chosen
NEAR = 0.72  # cosine of two descriptors from which on a pair is looked at
SAME = 0.93  # correlation of grey values from which on two images show the same
DETAIL = 0.8  # correlation of the gradients there
STEPS = (0.05, 0.025, 0.0125)  # by which a crop is shifted, shares of the side
ALL = 0.93  # share of an image from which on nothing was cut off
TRIED = 3  # crops of a pair that are tried, the nearest first
FIRST = 0.6  # correlation below which no shifting is tried
FLAT = 6.0  # standard deviation of 255 below which an image has no structure to compare
FAR_SHADE = 10.0  # of 255: mean difference of the colour thumbnails of two flat images
MOST_PAIRED = 32  # of more copies of one image each is told against the first alone
SMALL = 2000  # images up to which every pair is compared
PROBES = 4  # centres that a descriptor is looked for in
CHUNK = 8192  # descriptors compared at once

Array = np.ndarray
Rect = tuple[float, float, float, float]  # left, top, right, bottom; shares of the sides
Pair = tuple[str, int, int]  # "exact", "near", "cropped" or "mirrored"; i < j

WHOLE: Rect = (0.0, 0.0, 1.0, 1.0)


def _crops() -> tuple[Rect, ...]:
    """What is looked for of an image: a tenth or a fifth cut off, on one side or all."""
    squares = [
        (left * (1 - side), top * (1 - side), left * (1 - side) + side, top * (1 - side) + side)
        for side in (0.9, 0.8, 0.7)
        for left, top in itertools.product((0.0, 0.5, 1.0), repeat=2)
    ]
    strips = [(start, 0.0, start + 0.8, 1.0) for start in (0.0, 0.1, 0.2)]
    return (WHOLE, *squares, *strips, *((top, left, bottom, right) for left, top, right, bottom in strips))


CROPS = _crops()


def search(digests: Sequence[bytes], greys: Array, shades: Array) -> list[Pair]:
    """Every pair that shows the same, by j, then i.

    `digests`: equal for equal pixels. `greys`: uint8 [N,48,48]. `shades`: uint8 [N,16,16,3].
    """
    found: dict[tuple[int, int], str] = {}
    kept = _alike(digests, greys, found)
    proof = _Proof(greys, shades)
    members = _Groups()
    for i, j, crops, mirrored in _candidates(greys, kept):
        kinds = proof.kinds(i, j, crops, mirrored)
        for first, second, kind in zip(i.tolist(), j.tolist(), kinds, strict=True):
            if kind is None:
                continue
            pair = (min(first, second), max(first, second))
            if digests[first] == digests[second]:
                kind = "exact"
            if RANKS[kind] < RANKS.get(found.get(pair, ""), 9) and members.tells(*pair):
                found[pair] = kind
    for pair in _flat(greys, shades, kept):
        if pair not in found and members.tells(*pair):
            found[pair] = "near"
    return sorted(((kind, i, j) for (i, j), kind in found.items()), key=lambda pair: (pair[2], pair[1]))


RANKS = {"exact": 0, "near": 1, "cropped": 2, "mirrored": 3}


def _alike(digests: Sequence[bytes], greys: Array, found: dict[tuple[int, int], str]) -> Array:
    """Images to compare: of a crowd of copies only the first, the others are told against it at once."""
    passed_over: set[int] = set()
    for kind, keys in (("exact", list(digests)), ("near", [grey.tobytes() for grey in greys >> 3])):
        groups: dict[bytes, list[int]] = defaultdict(list)
        for place, key in enumerate(keys):
            if place not in passed_over:
                groups[key].append(place)
        for group in groups.values():
            if len(group) > MOST_PAIRED:
                first, *others = group
                if kind == "near" and greys[first].std() < FLAT:
                    continue
                found.update({(first, other): kind for other in others})
                passed_over.update(others)
            elif kind == "exact":
                found.update(dict.fromkeys(itertools.combinations(group, 2), kind))
    return np.array([place for place in range(len(digests)) if place not in passed_over], dtype=np.int64)


def _flat(greys: Array, shades: Array, kept: Array) -> Iterator[tuple[int, int]]:
    """Pairs of images without structure, such as black frames, of the same colours."""
    flat = kept[greys[kept].std((1, 2)) < FLAT][:SMALL]
    colours = shades[flat].astype(np.float32).reshape(len(flat), SHADES * SHADES * 3)
    means = shades[flat].astype(np.float32).mean((1, 2))
    for place in range(1, len(flat)):
        near = np.flatnonzero(np.abs(means[:place] - means[place]).mean(1) <= FAR_SHADE)
        for other in near[np.abs(colours[near] - colours[place]).mean(1) <= FAR_SHADE].tolist()[:MOST_PAIRED]:
            yield int(flat[other]), int(flat[place])


class _Groups:
    """Who is connected with whom; in a crowd not every pair is told."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}
        self._size: dict[int, int] = {}

    def _root(self, place: int) -> int:
        while (above := self._parent.setdefault(place, place)) != place:
            self._parent[place] = place = self._parent[above]
        return place

    def tells(self, i: int, j: int) -> bool:
        """Whether the pair is worth telling; connects the two."""
        first, second = self._root(i), self._root(j)
        size = self._size.get(first, 1)
        if first == second:
            return size <= MOST_PAIRED
        self._parent[second] = first
        self._size[first] = size + self._size.get(second, 1)
        return True


def windows(greys: Array, rects: Array, cells: int) -> Array:
    """[M,cells,cells]: means over equal parts of a rectangle, one [4] for all images or [M,4], each its own."""
    side = greys.shape[1]
    across, down = (_shares(rects[..., axis], rects[..., axis + 2], cells, side) for axis in (0, 1))
    return down @ greys @ across.swapaxes(-1, -2)


def _shares(start: Array, end: Array, cells: int, side: int) -> Array:
    """[...,cells,side]: how much each of `side` pixels counts in each of the cells between two places of 0 to 1."""
    steps = np.arange(cells + 1, dtype=np.float32) / cells * side
    edges = start[..., None] * side + (end - start)[..., None] * steps
    pixels = np.arange(side, dtype=np.float32)
    inner = np.minimum(edges[..., 1:, None], pixels + 1) - np.maximum(edges[..., :-1, None], pixels)
    return np.maximum(inner, 0) / np.maximum(edges[..., 1:, None] - edges[..., :-1, None], 1e-6)


def unit(values: Array) -> Array:
    """[M,...] as rows of length 1 around 0; rows without structure stay 0."""
    rows = values.reshape(len(values), -1)
    rows = rows - rows.mean(1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(lengths > 1e-3, rows / np.maximum(lengths, 1e-3), 0).astype(np.float32)


def descriptors(greys: Array, rect: Rect) -> Array:
    """float32 [M,112]: gradients of what a rectangle of each image shows."""
    cells = windows(greys, np.array(rect, np.float32), CELLS)
    rows = [np.diff(cells, axis=axis).reshape(len(cells), -1) for axis in (1, 2)]
    return unit(np.concatenate(rows, axis=1))


def _axes(sample: Array) -> Array:
    """[112,AXES]: the directions in which descriptors differ most; the others are left out to save work."""
    return np.linalg.svd(sample, full_matrices=False)[2][:AXES].T


def unit_rows(rows: Array) -> Array:
    """Rows of length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def _candidates(greys: Array, kept: Array) -> Iterator[tuple[Array, Array, Array, bool]]:
    """(i, j, rectangles [M,4] of i, mirrored): what that part of image i shows may be the whole of image j."""
    if len(kept) < 2:
        return
    small = windows(greys[kept].astype(np.float32), np.array(WHOLE, np.float32), GREY // 2)
    axes = _axes(descriptors(small[:: max(1, len(small) // SAMPLE)], WHOLE))
    index = _Index(unit_rows(descriptors(small, WHOLE) @ axes))
    for start in range(0, len(kept), CHUNK):
        part = small[start : start + CHUNK]
        for mirrored in (False, True):
            shown = part[:, :, ::-1] if mirrored else part
            found = [index.near(unit_rows(descriptors(shown, crop) @ axes)) for crop in CROPS]
            crops = np.repeat(np.arange(len(CROPS)), [len(near) for _, _, near in found])
            first, second, near = (np.concatenate(parts) for parts in zip(*found, strict=True))
            first = first + start
            # Of two whole images each pair comes twice, and each with itself.
            fresh = np.flatnonzero(np.where(crops == 0, first < second, first != second))
            best = fresh[np.lexsort((-near[fresh], second[fresh], first[fresh]))]
            far = np.ones(len(best), bool)  # from the TRIED-th crop on, of one pair
            far[TRIED:] = (first[best[TRIED:]] != first[best[:-TRIED]]) | (
                second[best[TRIED:]] != second[best[:-TRIED]]
            )
            best = best[far]
            if len(best):
                rects = np.array(CROPS, np.float32)[crops[best]]
                yield kept[first[best]], kept[second[best]], rects, mirrored


class _Index:
    """Finds the targets near to many descriptors at once, within the cells of the nearest centres."""

    def __init__(self, targets: Array) -> None:
        self._targets = targets
        count = 1 if len(targets) <= SMALL else int(len(targets) ** 0.5)
        draws = np.random.default_rng(0)
        self._centres = targets[draws.choice(len(targets), count, replace=False)]
        owners = np.concatenate(
            [np.argmax(targets[start : start + CHUNK] @ self._centres.T, axis=1)
             for start in range(0, len(targets), CHUNK)]
        )  # fmt: skip
        self._members = [np.flatnonzero(owners == number) for number in range(count)]

    def near(self, queries: Array) -> tuple[Array, Array, Array]:
        """(place of the query, place of the target, cosine) of every pair of a cosine of at least NEAR."""
        count = len(self._centres)
        if count == 1:
            return _hits(queries, self._targets, np.arange(len(queries)), np.arange(len(self._targets)))
        closeness = queries @ self._centres.T
        probes = np.argpartition(-closeness, PROBES, axis=1)[:, :PROBES]
        order = np.argsort(probes.ravel(), kind="stable")
        edges = np.searchsorted(probes.ravel()[order], np.arange(count + 1))
        empty = np.empty(0, np.int64)
        found = [(empty, empty, np.empty(0, np.float32))]
        for number, members in enumerate(self._members):
            askers = order[edges[number] : edges[number + 1]] // PROBES
            if len(askers) and len(members):
                found.append(_hits(queries[askers], self._targets[members], askers, members))
        first, second, near = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return first, second, near


def _hits(queries: Array, targets: Array, askers: Array, members: Array) -> tuple[Array, Array, Array]:
    near = queries @ targets.T
    rows, columns = np.nonzero(near >= NEAR)
    crowded = np.flatnonzero(np.bincount(rows, minlength=len(queries)) > MOST_PAIRED)
    if len(crowded):  # the nearest ones are enough
        best = np.argpartition(-near[crowded], MOST_PAIRED, axis=1)[:, :MOST_PAIRED]
        others = ~np.isin(rows, crowded)
        rows = np.concatenate([rows[others], np.repeat(crowded, MOST_PAIRED)])
        columns = np.concatenate([columns[others], best.ravel()])
    return askers[rows], members[columns], near[rows, columns]


class _Proof:
    """Whether a part of one image shows what another does."""

    def __init__(self, greys: Array, shades: Array) -> None:
        self._greys, self._shades = greys, shades

    def kinds(self, i: Array, j: Array, rects: Array, mirrored: bool) -> list[str | None]:
        """The kind of each candidate, None where the two do not show the same."""
        kinds: list[str | None] = []
        for start in range(0, len(i), CHUNK // 4):
            part = slice(start, start + CHUNK // 4)
            kinds += self._part(i[part], j[part], rects[part], mirrored)
        return kinds

    def _part(self, i: Array, j: Array, rects: Array, mirrored: bool) -> list[str | None]:
        greys = (self._greys[i][:, :, ::-1] if mirrored else self._greys[i]).astype(np.float32)
        other = windows(self._greys[j].astype(np.float32), np.array(WHOLE, np.float32), FINE)
        wanted = unit(other)
        fit = _correlation(greys, rects, wanted)
        rects = rects.copy()
        for step in STEPS:
            open_ = np.flatnonzero((fit >= FIRST) & (fit < 0.99))
            for moves in _MOVES if len(open_) else ():
                tried = _moved(rects[open_], np.array(moves, np.float32) * step)
                better = _correlation(greys[open_], tried, wanted[open_])
                gain = better > fit[open_]
                fit[open_[gain]], rects[open_[gain]] = better[gain], tried[gain]
        detail = np.einsum("mk,mk->m", _edges(windows(greys, rects, FINE)), _edges(other))
        same = (fit >= SAME) & (detail >= DETAIL) & self._structured(i, j, mirrored)
        areas = (rects[:, 2] - rects[:, 0]) * (rects[:, 3] - rects[:, 1])
        return [
            None if not ok else "mirrored" if mirrored else "near" if area > ALL else "cropped"
            for ok, area in zip(same.tolist(), areas.tolist(), strict=True)
        ]

    def _structured(self, i: Array, j: Array, mirrored: bool) -> Array:
        """Images with structure; flat ones only where their colours are the same."""
        flat = np.minimum(self._greys[i].std((1, 2)), self._greys[j].std((1, 2))) < FLAT
        first = self._shades[i][:, :, ::-1] if mirrored else self._shades[i]
        apart = np.abs(first.astype(np.int16) - self._shades[j].astype(np.int16)).mean((1, 2, 3))
        return ~flat | (apart <= FAR_SHADE)


_MOVES = (
    (1, 0, 1, 0), (-1, 0, -1, 0), (0, 1, 0, 1), (0, -1, 0, -1), (1, 1, -1, -1), (-1, -1, 1, 1),
    (1, 0, 0, 0), (-1, 0, 0, 0), (0, 0, 1, 0), (0, 0, -1, 0), (0, 1, 0, 0), (0, -1, 0, 0), (0, 0, 0, 1), (0, 0, 0, -1),
)  # fmt: skip  # of left, top, right, bottom


def _moved(rects: Array, by: Array) -> Array:
    tried = np.clip(rects + by, 0, 1)
    fits = (tried[:, 2] - tried[:, 0] >= 0.5) & (tried[:, 3] - tried[:, 1] >= 0.5)
    return np.where(fits[:, None], tried, rects)


def _edges(cells: Array) -> Array:
    """Gradients as rows of length 1, the strong ones held down so that one edge is not all that counts."""
    rows = [np.diff(cells, axis=axis).reshape(len(cells), -1) for axis in (1, 2)]
    edges = np.concatenate(rows, axis=1)
    usual = np.abs(edges).mean(1, keepdims=True)
    edges = edges / (np.abs(edges) + usual + 0.5)
    return edges / np.maximum(np.linalg.norm(edges, axis=1, keepdims=True), 1e-3)


def _correlation(greys: Array, rects: Array, wanted: Array) -> Array:
    return np.einsum("mk,mk->m", unit(windows(greys, rects, FINE)), wanted)
