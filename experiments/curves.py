"""Scenes of smooth curves that only following them tells apart: to trace one, or to say which two ends meet.

After Pathfinder (Linsley et al. 2018; Kim et al. 2020; Long Range Arena, Tay et al. 2021).
"""

from collections.abc import Sequence

import cv2
import numpy as np

STEP = 2.0  # px between the points of a curve
STROKE = 3  # px
GAP = 9.0  # px, least distance between the centre lines of two curves, and of two far parts of one
TURN = 0.18  # radians, standard deviation of the change of direction at a step
FEWEST_POINTS = 0.2  # of a curve, over the side of the image
MOST_POINTS = 1.0
MAX_CURVES = 6
MARK = (255, 30, 30)
NOISE = 4  # standard deviation of the grey levels
TRIES = 200
SUBPIXEL = 4  # bits, for OpenCV


def trace(size: int, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Points (n, 2) of up to ``count`` curves that keep :data:`GAP` from each other."""
    taken = np.zeros((size, size), np.uint8)
    margin, found = 4.0, []
    for _ in range(TRIES):
        if len(found) == count:
            break
        points = grow(size, margin, taken, rng)
        if len(points) >= FEWEST_POINTS * size:
            found.append(points)
            cv2.polylines(taken, [points.round().astype(np.int32)], False, 1, int(2 * GAP) - 1)
    return found


def grow(size: int, margin: float, taken: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Points of one curve from a free place on, until it has its length or no way is free."""
    own = taken.copy()
    point = rng.uniform(margin, size - margin, 2)
    heading = rng.uniform(0, 2 * np.pi)
    bend, lag = 0.0, int(1.5 * GAP / STEP)
    points = [point]
    if own[int(point[1]), int(point[0])]:
        return np.empty((0, 2))
    for _ in range(int(rng.uniform(0.6, 1) * MOST_POINTS * size)):
        bend = 0.8 * bend + rng.normal(0, TURN)
        for swerve in (0, 0.4, -0.4, 0.8, -0.8):
            angle = heading + bend + swerve
            new = point + STEP * np.array([np.cos(angle), np.sin(angle)])
            inside = margin <= new.min() and new.max() < size - margin
            if inside and not own[int(new[1]), int(new[0])]:
                break
        else:
            break
        point, heading = new, angle
        points.append(point)
        if len(points) > lag:  # the curve itself is in the way as soon as it has left a place
            old = points[-lag - 1]
            cv2.circle(own, (round(old[0]), round(old[1])), int(GAP) - 1, 1, -1)
    return np.array(points)


def draw(picture: np.ndarray, points: np.ndarray, colour: Sequence[float], dash: int = 0) -> None:
    """Draw a curve, smooth at its borders; with ``dash`` every other piece of as many points is left out."""
    fixed = (points * 2**SUBPIXEL).round().astype(np.int32)
    pieces = [fixed[i : i + dash + 1] for i in range(0, len(fixed), 2 * dash)] if dash else [fixed]
    cv2.polylines(picture, pieces, False, tuple(colour), STROKE, cv2.LINE_AA, SUBPIXEL)


def disc(picture: np.ndarray, centre: np.ndarray, radius: int, colour: Sequence[float]) -> None:
    cv2.circle(picture, (round(centre[0]), round(centre[1])), radius, tuple(colour), -1, cv2.LINE_AA)


def colours(rng: np.random.Generator) -> tuple[list[float], list[float]]:
    """Of a dark background and of bright curves, RGB."""
    return rng.uniform(0, 70, 3).tolist(), rng.uniform(150, 255, 3).tolist()


def noisy(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (picture + rng.normal(0, NOISE, picture.shape)).clip(0, 255).astype(np.uint8)


def tracing_scene(size: int, seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Like-coloured curves, one of them marked at one end: which pixels belong to it?

    Returns:
        The picture (size, size, 3) uint8; labels (size, size) uint8, 0 background, 1 the marked curve, 2 the
        others; and the distance of the marked curve's pixels from the mark along the curve in px, (size,
        size) uint16.
    """
    rng = np.random.default_rng(seed)
    curves = []
    while len(curves) < 2:
        curves = trace(size, int(rng.integers(3, MAX_CURVES + 1)), rng)
    background, ink = colours(rng)
    picture = np.zeros((size, size, 3), np.float32) + np.float32(background)
    labels, distance = np.zeros((size, size), np.uint8), np.zeros((size, size), np.float32)
    for i, points in enumerate(curves):
        draw(picture, points, ink)
        whole = points.round().astype(np.int32)
        cv2.polylines(labels, [whole], False, 2 if i else 1, STROKE)
    for k, (first, last) in enumerate(zip(curves[0], curves[0][1:], strict=False)):
        ends = np.array([first, last]).round().astype(np.int32)
        cv2.polylines(distance, [ends], False, k * STEP, STROKE)
    disc(picture, curves[0][0], STROKE, MARK)
    return noisy(picture, rng), labels, distance.astype(np.uint16)


def pathfinder_scene(size: int, seed: Sequence[int]) -> tuple[np.ndarray, int]:
    """Dashed curves and two discs on ends: are they the ends of one curve?

    Returns:
        The picture (size, size, 3) uint8, white on black, and 1 for one curve, 0 for two.
    """
    rng = np.random.default_rng(seed)
    curves = []
    while len(curves) < 2:
        curves = trace(size, int(rng.integers(3, MAX_CURVES + 1)), rng)
    picture = np.zeros((size, size, 3), np.float32)
    for points in curves:
        draw(picture, points, (200, 200, 200), dash=2)
    same = int(rng.integers(2))
    for end in (curves[0][0], curves[0][-1] if same else curves[1][-1]):
        disc(picture, end, STROKE, (255, 255, 255))
    return noisy(picture, rng), same
