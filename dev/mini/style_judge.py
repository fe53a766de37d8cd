"""Reads the amounts of a style back from a picture of one shape in the middle. Rules about pixels; no model."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .styles import MOST, REPEAT, grains, strokes

STRIP = REPEAT  # px: at the left and at the right is nothing but wall, unless a star reaches into it
PLAIN_FADING = 0.02  # what the lamp of plain pictures, in their upper half, leaves from top to bottom
DARK = 0.45  # of the wall's brightest channel: no channel of an outline's ink reaches it


def palette(picture: np.ndarray) -> np.ndarray:
    """The wall's colour, RGB: what a palette does to the largest flat of a picture (HxWx3)."""
    return np.median(np.concatenate([window.reshape(-1, 3) for window in _wall(picture)]), 0)


def amounts(picture: np.ndarray) -> dict[str, float]:
    """How much of each treatment a picture (HxWx3 uint8) shows, 0 none and 1 the most that a drawn picture has."""
    light = picture.astype(np.float64).mean(-1)
    waves, cells = _patterns(light)
    return {
        "hatching": waves / (1 + waves) / (0.5 * MOST["hatching"]),
        "grain": cells / MOST["grain"],
        "outline": _outline(picture.astype(np.float64)) / (MOST["outline"] * min(light.shape)),
        "soft_light": (_fading(light) - PLAIN_FADING) / MOST["soft_light"],
    }


def _wall(picture: np.ndarray) -> list[np.ndarray]:
    rows = picture.shape[0] // REPEAT * REPEAT
    return [picture[:rows, :STRIP], picture[:rows, -STRIP:]]


def _patterns(light: np.ndarray) -> tuple[float, float]:
    """Amplitudes of the hatching's wave and of the grains, relative to the wall's brightness."""
    windows = [_flattened(window).reshape(-1, REPEAT, REPEAT) for window in _wall(light)]
    patch = np.concatenate(windows).mean(0)
    wave = 1 - 2 * strokes(REPEAT, REPEAT)
    terms = np.stack([wave.ravel(), grains(REPEAT, REPEAT).ravel()], 1)
    amplitudes = np.linalg.lstsq(terms, (patch - patch.mean()).ravel(), rcond=None)[0]
    return float(amplitudes[0]), float(amplitudes[1])


def _flattened(window: np.ndarray) -> np.ndarray:
    """Brightness relative to the slope and the bend along it, minus 1."""
    y, x = np.mgrid[0 : window.shape[0], 0 : window.shape[1]].astype(np.float64)
    terms = np.stack([np.ones(window.size), x.ravel(), y.ravel(), (y * y).ravel()], 1)
    plane = terms @ np.linalg.lstsq(terms, window.ravel(), rcond=None)[0]
    return window / np.maximum(plane.reshape(window.shape), 1.0) - 1


def _outline(picture: np.ndarray) -> float:
    """Width in px of the dark line round what stands in the middle: its area by the length of its middle."""
    ink = picture.max(-1) < DARK * palette(picture).max()
    whole = ndimage.binary_fill_holes(ink)
    ring = ink & ~ndimage.binary_erosion(whole, iterations=max(2, min(ink.shape) // 16))
    if not ring.any():
        return 0.0
    outside = ndimage.binary_fill_holes(ring)
    length = (outside & ~ndimage.binary_erosion(outside)).sum()
    return float(ring.sum() / max(length, 1))


def _fading(light: np.ndarray) -> float:
    """How much darker the wall is at the bottom than at the top."""
    rows = np.mean([window.mean(1) for window in _wall(light)], 0)
    slope, top = np.polyfit((np.arange(len(rows)) + 0.5) / len(light), rows, 1)
    return float(-slope / max(top, 1.0))
