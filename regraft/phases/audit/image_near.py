"""Images that are one picture saved twice: recompressed, resized, brightened, cropped a little, mirrored or turned a little.

Candidates are pairs of coarse grey thumbnails that correlate; each is then verified on finer thumbnails, aligned over small
crops, turns and the mirror image, on the picture itself and on its fine structure, so that photos of one scene do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from regraft.phases.audit.image_scan import GREY

COARSE = 12  # side of the thumbnails that find candidates
CANDIDATE = 0.70  # correlation of coarse thumbnails from which a pair is verified
WHOLE, FINE = 0.90, 0.78  # correlation of aligned thumbnails, and of their fine structure, that make a near duplicate
SAMPLE = 20_000  # images compared with each other at most
MOST = 12  # candidates verified for each image, those that correlate best
MOST_PAIRS = 30_000  # candidates verified in all, those that correlate best
SCALES = (1.0, 0.97, 0.94, 0.91, 0.88)
TURNS = (-5.0, -3.0, -1.5, 1.5, 3.0, 5.0)  # degrees


def near_pairs(grey: np.ndarray) -> list[tuple[int, int, float]]:
    """(i, j, correlation) with i < j of all verified pairs among thumbnails (N, 48, 48) uint8."""
    best: dict[tuple[int, int], float] = {}
    pairs = candidate_pairs(grey)
    if not len(pairs):
        return []
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    movers, starts = np.unique(both[:, 0], return_index=True)
    for mover, partners in zip(movers.tolist(), np.split(both[:, 1], starts[1:]), strict=True):
        stack = variants(grey[mover])
        for flipped in (False, True):
            stills = grey[partners][:, :, ::-1] if flipped else grey[partners]
            score = _correlations(stack, stills)
            for k in np.flatnonzero(score.max(axis=0) >= WHOLE):
                moved = stack[score[:, k].argmax()][None]
                if _correlations(_fine(moved), _fine(stills[k][None].astype(np.float32)))[0, 0] >= FINE:
                    pair = (min(mover, int(partners[k])), max(mover, int(partners[k])))
                    best[pair] = max(best.get(pair, 0.0), float(score[:, k].max()))
    return [(one, two, score) for (one, two), score in sorted(best.items())]


def candidate_pairs(grey: np.ndarray) -> np.ndarray:
    """(P, 2) int64 pairs i < j whose coarse thumbnails correlate, one of them possibly mirrored; at most MOST_PAIRS."""
    plain, mirror = _coarse(grey), _coarse(grey[:, :, ::-1])
    found, scores = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    for start in range(0, len(grey), 1024):
        block = slice(start, start + 1024)
        score = np.maximum(plain[block] @ plain.T, mirror[block] @ plain.T)
        score[np.arange(len(score)), np.arange(start, start + len(score))] = -1
        most = min(MOST, score.shape[1] - 1)
        if most < 1:
            continue
        best = np.argpartition(-score, most - 1, axis=1)[:, :most]
        rows, columns = np.nonzero(np.take_along_axis(score, best, axis=1) >= CANDIDATE)
        found.append(np.sort(np.stack([rows + start, best[rows, columns]], axis=1), axis=1))
        scores.append(score[rows, best[rows, columns]])
    pairs, index = np.unique(np.concatenate(found), axis=0, return_index=True)
    kept = np.argsort(-np.concatenate(scores)[index], kind="stable")[:MOST_PAIRS]
    return pairs[np.sort(kept)]


def alignment(one: np.ndarray, two: np.ndarray) -> tuple[float, float]:
    """(correlation, correlation of the fine structure) of two thumbnails in their best alignment."""
    best = (-1.0, -1.0)
    for a, b in ((one, two), (one[:, ::-1], two)):
        for moved, still in ((a, b), (b, a)):
            stack = variants(moved)
            whole = _correlations(stack, still[None])[:, 0]
            top = int(whole.argmax())
            if whole[top] > best[0]:
                fine = _correlations(_fine(stack[top][None]), _fine(still[None].astype(np.float32)))
                best = (float(whole[top]), float(fine[0, 0]))
    return best


def variants(image: np.ndarray) -> np.ndarray:
    """(V, 48, 48) float32: the thumbnail as it is, cropped by up to 12 % at nine places, and turned a little."""
    values = np.asarray(image, dtype=np.float32)
    crops = []
    for matrices in _crop_matrices():
        tall = matrices @ values  # (O, 48, 48)
        crops.append((tall[:, None] @ matrices.transpose(0, 2, 1)[None]).reshape(-1, GREY, GREY))
    rows, columns = _turned_places()
    turned = _sample(values, rows, columns)
    return np.concatenate([*crops, turned])


@lru_cache(maxsize=1)
def _crop_matrices() -> tuple[np.ndarray, ...]:
    """For each scale (O, 48, 48) matrices that crop and stretch one axis at O offsets."""
    out = []
    for scale in SCALES:
        offsets = (0.0,) if scale == 1 else (0.0, 0.5, 1.0)
        out.append(np.stack([_stretch(scale, offset * (1 - scale)) for offset in offsets]))
    return tuple(out)


def _stretch(scale: float, offset: float) -> np.ndarray:
    """(48, 48) float32 matrix of linear interpolation."""
    place = np.clip((np.arange(GREY) + 0.5) * scale + offset * GREY - 0.5, 0, GREY - 1)
    low = np.minimum(place.astype(np.int64), GREY - 2)
    out = np.zeros((GREY, GREY), np.float32)
    out[np.arange(GREY), low] = 1 - (place - low)
    out[np.arange(GREY), low + 1] += place - low
    return out


@lru_cache(maxsize=1)
def _turned_places() -> tuple[np.ndarray, np.ndarray]:
    """(T, 48, 48) source rows and columns of pictures turned by TURNS, with and without the corners cropped away."""
    centre = (GREY - 1) / 2
    y, x = np.meshgrid(np.arange(GREY) - centre, np.arange(GREY) - centre, indexing="ij")
    rows, columns = [], []
    for degrees in TURNS:
        for scale in (1.0, 0.9):
            angle = np.deg2rad(degrees)
            rows.append(scale * (np.cos(angle) * y + np.sin(angle) * x) + centre)
            columns.append(scale * (np.cos(angle) * x - np.sin(angle) * y) + centre)
    return np.clip(np.stack(rows), 0, GREY - 1), np.clip(np.stack(columns), 0, GREY - 1)


def _sample(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear values at (T, 48, 48) places."""
    top = np.minimum(rows.astype(np.int64), GREY - 2)
    left = np.minimum(columns.astype(np.int64), GREY - 2)
    down, right = (rows - top).astype(np.float32), (columns - left).astype(np.float32)
    upper = values[top, left] * (1 - right) + values[top, left + 1] * right
    lower = values[top + 1, left] * (1 - right) + values[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def _fine(stack: np.ndarray) -> np.ndarray:
    """The picture less its 5 x 5 mean."""
    padded = np.pad(stack, ((0, 0), (2, 2), (2, 2)), mode="edge")
    sums = sum(padded[:, i : i + GREY, j : j + GREY] for i in range(5) for j in range(5))
    return stack - sums / 25


def _correlations(stack: np.ndarray, stills: np.ndarray) -> np.ndarray:
    """(V, P) correlation of each picture (V, 48, 48) with each of some others (P, 48, 48)."""
    return _centred(stack) @ _centred(stills).T


def _centred(stack: np.ndarray) -> np.ndarray:
    """(V, 2304) float32 rows of mean 0 and length 1."""
    flat = stack.reshape(len(stack), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6)


def _coarse(grey: np.ndarray) -> np.ndarray:
    """(N, 144) float32 coarse thumbnails with mean 0 and length 1."""
    size = GREY // COARSE
    small = grey.reshape(-1, COARSE, size, COARSE, size).mean(axis=(2, 4), dtype=np.float32).reshape(len(grey), -1)
    small -= small.mean(axis=1, keepdims=True)
    return small / (np.linalg.norm(small, axis=1, keepdims=True) + 1e-6)


def closest(pairs: Sequence[tuple[int, int, float]]) -> dict[int, list[tuple[float, int]]]:
    """For each picture its near duplicates, the most similar first."""
    out: dict[int, list[tuple[float, int]]] = {}
    for one, two, score in pairs:
        out.setdefault(one, []).append((-score, two))
        out.setdefault(two, []).append((-score, one))
    return {key: sorted(found) for key, found in out.items()}
