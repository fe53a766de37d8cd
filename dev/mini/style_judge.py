"""Reads the amounts of a style back from a picture of one shape in the middle. Rules about pixels; no model."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .styles import GRAIN_CELL, HATCHING_PERIOD, MOST, PLAIN_FALLOFF

STRIP = 24  # px: at the left and at the right is nothing but wall, unless a star reaches into it
DARK = 0.45  # of the wall's brightest channel: no channel of an outline's ink reaches it
WAVE = 2 * np.pi / (HATCHING_PERIOD * 2**0.5)  # radians a px, along each axis


def palette(picture: np.ndarray) -> np.ndarray:
    """The wall's colour, RGB: what a palette does to the largest flat of a picture (HxWx3)."""
    return np.median(np.concatenate([window.reshape(-1, 3) for window in _wall(picture)]), 0)


def amounts(picture: np.ndarray) -> dict[str, float]:
    """How much of each treatment a picture (HxWx3 uint8) shows, 0 none and 1 the most that a drawn picture has."""
    light = picture.astype(np.float64).mean(-1)
    windows = [_flattened(window) for window in _wall(light)]
    strokes = [_stroke(window) for window in windows]
    amplitude = float(np.mean([abs(stroke) for stroke in strokes]))
    grains = [_cells(window - _wave(stroke, window.shape)) for window, stroke in zip(windows, strokes, strict=True)]
    return {
        "hatching": amplitude / (1 + amplitude) / (0.5 * MOST["hatching"]),
        "grain": float(np.mean([cells.std() for cells in grains])) / (MOST["grain"] / 3**0.5),
        "outline": _outline(picture.astype(np.float64)) / (MOST["outline"] * min(light.shape)),
        "soft_light": (_falloff(light) - PLAIN_FALLOFF) / MOST["soft_light"],
    }


def _wall(picture: np.ndarray) -> list[np.ndarray]:
    rows = picture.shape[0] // GRAIN_CELL * GRAIN_CELL
    return [picture[:rows, :STRIP], picture[:rows, -STRIP:]]


def _flattened(window: np.ndarray) -> np.ndarray:
    """Brightness relative to the slope and the bend along it, minus 1."""
    y, x = np.mgrid[0 : window.shape[0], 0 : window.shape[1]].astype(np.float64)
    terms = np.stack([np.ones(window.size), x.ravel(), y.ravel(), (y * y).ravel()], 1)
    plane = terms @ np.linalg.lstsq(terms, window.ravel(), rcond=None)[0]
    return window / np.maximum(plane.reshape(window.shape), 1.0) - 1


def _stroke(window: np.ndarray) -> complex:
    """The complex amplitude of the hatching's wave."""
    y, x = np.mgrid[0 : window.shape[0], 0 : window.shape[1]]
    taper = np.outer(np.hanning(window.shape[0]), np.hanning(window.shape[1]))
    return 2 * (taper * window * np.exp(-1j * WAVE * (x + y))).sum() / taper.sum()


def _wave(amplitude: complex, shape: tuple[int, ...]) -> np.ndarray:
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    return (amplitude * np.exp(1j * WAVE * (x + y))).real


def _cells(window: np.ndarray) -> np.ndarray:
    """Means of the grain's cells, without what varies more slowly."""
    cells = window.reshape(-1, GRAIN_CELL, STRIP // GRAIN_CELL, GRAIN_CELL).mean((1, 3))
    return cells - ndimage.uniform_filter(cells, 3)


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


def _falloff(light: np.ndarray) -> float:
    """How much darker the wall gets over the picture's diagonal, as styles.light_falloff says it."""
    height, width = light.shape
    y, x = (np.mgrid[0:height, 0:width].astype(np.float64) + 0.5) / (height**2 + width**2) ** 0.5
    x, y, values = (np.concatenate([window.ravel() for window in _wall(whole)]) for whole in (x, y, light))
    terms = np.stack([np.ones(len(x)), x, y, x * x + y * y], 1)
    c, cx, cy, square = np.linalg.lstsq(terms, values, rcond=None)[0]
    if square >= 0:
        return 0.0
    brightest = c - (cx * cx + cy * cy) / (4 * square)
    return float(-square / (brightest / 1.03))
