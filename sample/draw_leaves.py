"""Draw small pictures of leaves that stand in for photos of leaf diseases.

    python sample/draw_leaves.py target sample                    # sample/leaves and sample/leaves_field
    python sample/draw_leaves.py source OUTPUT --per_class 300    # OUTPUT/{train,validation}/<class>/NNNNN.jpg

The target is one broad-leaved crop (similar to bean) in four conditions, in laboratory and field scenes. The source has
other crops in other conditions, for pretraining a network that is then adapted to the target. The path of a picture
seeds its random generator, so drawing more pictures of one class does not change those of another.
"""

import argparse
import multiprocessing
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt, gaussian_filter, shift

FINE = 3  # supersampling factor of shapes, for soft edges
SIZES = ((128, 128), (128, 160), (160, 128))  # height, width
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Crop:
    """The shape of a leaf: one blade, or several that fan out from its base and merge where they meet."""

    angles: tuple = (0,)  # degrees between each blade and the leaf's axis
    width: float = 0.8  # of a blade, as a fraction of its length
    widest: float = 0.35  # position of the largest width along the blade
    heart: float = 0.0  # how far the base extends back beside the stalk
    teeth: float = 0.0
    veins: int = 7  # side veins on each side of a midrib
    parallel: bool = False  # side veins run along the blade, as in grasses
    side_length: float = 0.75  # length of the outermost blades
    fill: float = 1.0  # size of the leaf relative to the picture
    green: tuple = (0.24, 0.45, 0.15)


BEAN = Crop(width=0.82, widest=0.34, heart=0.35, veins=6)
CROPS = {
    "apple": Crop(width=0.6, widest=0.45, teeth=0.1, veins=8, fill=1.1, green=(0.22, 0.41, 0.16)),
    "cassava": Crop((-110, -62, -22, 22, 62, 110), width=0.3, widest=0.55, fill=1.25, green=(0.22, 0.44, 0.2)),
    "citrus": Crop(width=0.5, widest=0.48, veins=9, fill=1.1, green=(0.15, 0.37, 0.12)),
    "cucumber": Crop((-130, -80, -38, 0, 38, 80, 130), widest=0.6, teeth=0.07, veins=4, side_length=0.8),
    "grape": Crop((-112, -56, 0, 56, 112), width=0.62, widest=0.5, teeth=0.12, veins=5, fill=1.1),
    "maize": Crop(width=0.2, widest=0.42, veins=4, parallel=True, fill=1.6, green=(0.25, 0.47, 0.16)),
}


@dataclass(frozen=True)
class Leaf:
    """One leaf in its place in the picture; the conditions are painted on its arrays."""

    mask: np.ndarray  # 1 inside, 0 outside
    margin: np.ndarray  # distance to the margin in pixels
    rib: np.ndarray  # distance to the nearest midrib or side vein in pixels
    colour: np.ndarray
    height: np.ndarray
    cells: np.ndarray  # corners of the areas between the veins
    rails: np.ndarray  # the side veins
    tip: np.ndarray
    size: float  # length in pixels


# ------------------------------------------------------------ marks


def noise(rng: Generator, shape: tuple, size: float) -> np.ndarray:
    """Smooth noise with features about `size` pixels wide, mean 0 and standard deviation about 1."""
    coarse = rng.normal(0, 1.4, (int(shape[0] / size) + 3, int(shape[1] / size) + 3)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))


def drawn(shape: tuple, paths: list | np.ndarray, width: float = 0) -> np.ndarray:
    """Lines `width` pixels wide, or filled polygons if `width` is 0, as values from 0 to 1 with soft edges."""
    canvas = Image.new("L", (shape[1] * FINE, shape[0] * FINE))
    pen = ImageDraw.Draw(canvas)
    for path in paths:
        points = (path * FINE).ravel().tolist()
        if width:
            pen.line(points, fill=255, width=max(1, round(width * FINE)), joint="curve")
        else:
            pen.polygon(points, fill=255)
    return np.asarray(canvas.reduce(FINE), np.float32) / 255


def scatter(rng: Generator, leaf: Leaf, count: float, small: float, large: float, gathered: float = 0) -> tuple:
    """Random centers on the leaf, and radii between fractions of its length; a share `gathered` is in clusters."""
    rows, columns = np.nonzero((leaf.mask > 0.9) & (leaf.margin > 1))
    chosen = rng.integers(0, len(rows), int(count))
    centres = np.stack([columns[chosen], rows[chosen]], 1) + rng.random((int(count), 2))
    hosts = centres[rng.integers(0, 1 + int(count) // 12, int(count))]
    moves = rng.random((int(count), 1)) < gathered
    centres = np.where(moves, hosts + rng.normal(0, leaf.size * 0.06, hosts.shape), centres)
    return centres, rng.uniform(small, large, int(count)) * leaf.size


def dots(rng: Generator, leaf: Leaf, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Roundish, slightly irregular spots."""
    turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], 1)
    blots = [c + r * circle * rng.normal(1, 0.13, (14, 1)) for c, r in zip(centres, radii, strict=True)]
    return drawn(leaf.mask.shape, blots)


def stain(leaf: Leaf, amount: np.ndarray, colour: tuple) -> None:
    """Blend the color of the leaf with another color."""
    leaf.colour[:] += np.clip(amount, 0, 1)[..., None] * (np.array(colour, np.float32) - leaf.colour)


def cut(leaf: Leaf, hole: np.ndarray) -> None:
    """Remove a part of the leaf and give the hole a brown edge."""
    stain(leaf, gaussian_filter(hole, 1.3) * 1.3, (0.36, 0.26, 0.12))
    leaf.mask[:] *= 1 - hole


# ------------------------------------------------------------ growing a leaf


def half_width(crop: Crop, along: np.ndarray) -> np.ndarray:
    """Half the width of a blade at positions along it, from 0 at the base to 1 at the tip."""
    return 0.5 * crop.width * np.sin(np.pi * along ** (np.log(0.5) / np.log(crop.widest))) ** 0.9


def blade_outline(rng: Generator, crop: Crop) -> np.ndarray:
    """The closed outline of a blade whose midrib runs from (0, 0) to (1, 0)."""
    along = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, 72))
    half = half_width(crop, along) * (1 + crop.teeth * ((along * 13) % 1 - 0.5))
    back = crop.heart * (1 - along) ** 4 * half / half.max()
    upper = np.stack([along - back, half * rng.uniform(0.9, 1.05)], 1)
    lower = np.stack([along - back, -half * rng.uniform(0.9, 1.05)], 1)
    return np.concatenate([upper, lower[::-1]])


def side_veins(rng: Generator, crop: Crop, side: int) -> np.ndarray:
    """The side veins on one side of a blade, each as 21 points."""
    t = np.linspace(0, 1, 21)
    steps = (np.arange(crop.veins)[:, None] + rng.uniform(0.2, 0.5, (crop.veins, 1))) / crop.veins
    if crop.parallel:
        return np.stack([np.tile(t, (crop.veins, 1)), side * steps * half_width(crop, t)], -1)
    start = steps * 0.9 - 0.03
    end = start + 0.35 * (1 - start)
    return np.stack([start + (end - start) * t**1.4, side * 0.95 * half_width(crop, end) * t], -1)


def cross_veins(rng: Generator, rails: np.ndarray, rungs: int) -> tuple[np.ndarray, np.ndarray]:
    """Short veins between neighboring side veins, and the four-cornered cells between them."""
    stops = np.linspace(0, 20, rungs) + rng.uniform(-1.2, 1.2, (len(rails), rungs))
    nodes = rails[np.arange(len(rails))[:, None], np.sort(stops.round().astype(int).clip(0, 20))]
    links = np.stack([nodes[:-1, 1:-1], nodes[1:, 1:-1]], 2)
    cells = np.stack([nodes[:-1, :-1], nodes[:-1, 1:], nodes[1:, 1:], nodes[1:, :-1]], 2)
    return links.reshape(-1, 2, 2), cells.reshape(-1, 4, 2)


def on_own_side(points: np.ndarray, crop: Crop, angle: float) -> np.ndarray:
    """Which points of a rotated blade are closer to its own axis than to those of the other blades."""
    bearing = np.degrees(np.arctan2(points[..., 1], points[..., 0]))
    return np.abs(bearing[..., None] - np.array(crop.angles)).argmin(-1) == crop.angles.index(angle)


def plan_leaf(rng: Generator, crop: Crop) -> dict[str, np.ndarray]:
    """All lines of a leaf by kind, in leaf coordinates: from the base at (0, 0) to the tip at (1, 0)."""
    straight, count = np.linspace(0, 1, 15), np.arange(crop.veins)[:, None]
    plan = {"outline": [], "midrib": [], "side": [], "cross": [], "cell": []}
    plan["stalk"] = [np.stack([-0.22 * straight, rng.normal(0, 0.05) * straight**2], 1)[None]]
    for angle in crop.angles:
        turn = np.radians(angle)
        length = 1 + (crop.side_length - 1) * abs(angle) / max(crop.angles[-1], 1)
        matrix = length * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        plan["outline"].append(blade_outline(rng, crop)[None] @ matrix)
        plan["midrib"].append(np.stack([0.98 * straight, 0 * straight], 1)[None] @ matrix)
        for side in (-1, 1):
            rails = side_veins(rng, crop, side) @ matrix
            links, cells = cross_veins(rng, rails, 14 if crop.parallel else 7)
            last = on_own_side(rails, crop, angle).sum(1, keepdims=True) - 1
            plan["side"].append(rails[count, np.minimum(np.arange(21), last)])  # ends where the next blade begins
            plan["cross"].append(links[on_own_side(links, crop, angle).all(1)])
            plan["cell"].append(cells[on_own_side(cells, crop, angle).all(1)])
    return {kind: np.concatenate(paths) for kind, paths in plan.items()}


def random_pose(rng: Generator, outline: np.ndarray, centre: np.ndarray, radius: float, pucker: float) -> tuple:
    """A function that ripples, bends, rotates and tilts leaf coordinates into the picture, and the leaf length."""
    middle = (outline.min(0) + outline.max(0)) / 2
    size = radius / np.linalg.norm(outline - middle, axis=1).max()
    turn = rng.uniform(0, 2 * np.pi)
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    matrix = matrix @ np.array([[1, rng.normal(0, 0.1)], [rng.normal(0, 0.1), rng.uniform(0.8, 1.05)]])
    bend, tilt = rng.normal(0, 0.18), rng.normal(0, 0.15, 2)
    waves, phases = rng.uniform(-13, 13, (4, 2)), rng.uniform(0, 6.3, 4)
    ripple = rng.normal(0, 1, (4, 2)) * (0.005 + 0.016 * pucker)

    def place(points: np.ndarray) -> np.ndarray:
        points = points + np.sin(points @ waves.T + phases) @ ripple
        points = points + bend * (points[..., :1] - 0.5) ** 2 * [0, 1]
        points = (points - middle) @ matrix
        return (centre + size * points / (1 + points @ tilt)[..., None]).astype(np.float32)

    return place, size


def grow_leaf(rng: Generator, crop: Crop, shape: tuple, aside: tuple = (0, 0), pucker: float = 0) -> Leaf:
    """A healthy leaf; `aside` is its offset from the center, as fractions of the picture's height and width."""
    plan = plan_leaf(rng, crop)
    centre = ((0.5 + np.array(aside) + rng.normal(0, 0.04, 2)) * shape)[::-1]
    radius = crop.fill * rng.uniform(0.38, 0.6) * min(shape)
    place, size = random_pose(rng, plan["outline"].reshape(-1, 2), centre, radius, pucker)
    at = {kind: place(paths) for kind, paths in plan.items()}
    thin = size / 110
    stalk, midribs = drawn(shape, at["stalk"], 2.6 * thin), drawn(shape, at["midrib"], 1.9 * thin)
    sides, crosses = drawn(shape, at["side"], thin), drawn(shape, at["cross"], 0.5 * thin)
    veins = np.maximum.reduce([0.8 * stalk, midribs, 0.75 * sides, 0.3 * crosses])
    mask = np.maximum(drawn(shape, at["outline"]), stalk)
    margin = distance_transform_edt(mask > 0.5)
    rib = distance_transform_edt(np.maximum(midribs, sides) < 0.4)
    fold = distance_transform_edt(midribs < 0.4)
    height = rng.uniform(0.02, 0.2) * fold + rng.uniform(0.4, 1) * np.sqrt(np.minimum(rib, 5)) - 0.7 * veins
    for amount, width in ((1.1, 0.3 * size), (0.4, 9), (0.15, 3)):
        height += rng.uniform(0.5, 1.5) * amount * noise(rng, shape, width)
    colour = leaf_colour(rng, crop.green, veins, margin)
    return Leaf(mask, margin, rib, colour, height, at["cell"], at["side"], at["midrib"][0][-1], size)


def leaf_colour(rng: Generator, green: tuple, veins: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """Shades of green that vary with age and position, with paler veins."""
    fresh = np.array(green) * rng.uniform(0.75, 1.3) * rng.normal(1, 0.07, 3)
    pale = np.array([0.5, 0.56, 0.18]) * rng.uniform(0.85, 1.15)
    age = rng.beta(1, 4) + 0.07 * noise(rng, veins.shape, 45) + 0.04 * noise(rng, veins.shape, 6)
    age = age + rng.uniform(-0.15, 0.25) * np.exp(-margin / 9) + rng.uniform(0.25, 0.6) * veins
    return (fresh + np.clip(age, 0, 0.9)[..., None] * (pale - fresh)).astype(np.float32)


# ------------------------------------------------------------ conditions of the target


def healthy(rng: Generator, leaf: Leaf, severity: float) -> None:
    """No symptoms."""


def rust(rng: Generator, leaf: Leaf, severity: float) -> None:
    """Many small raised orange-brown pustules, partly in clusters, often with a thin pale halo."""
    centres, radii = scatter(rng, leaf, 6 + 105 * severity**1.7, 0.007, 0.016, gathered=rng.uniform(0.2, 0.8))
    halo = gaussian_filter(dots(rng, leaf, centres, radii * 2.1), 0.7)
    pustules = dots(rng, leaf, centres, radii)
    stain(leaf, rng.uniform(0.1, 0.6) * halo, (0.66, 0.62, 0.2))
    stain(leaf, 0.95 * pustules, np.array([0.58, 0.26, 0.07]) * rng.uniform(0.65, 1.1))
    leaf.height[:] += 1.5 * gaussian_filter(pustules, 0.6)


def angular_leaf_spot(rng: Generator, leaf: Leaf, severity: float) -> None:
    """Gray-brown patches bounded by the veins, hence with straight edges, with a darker rim."""
    starts = rng.integers(0, len(leaf.cells), 3 + int(17 * severity**1.5))
    chosen = {int(i) for start in starts for i in range(start, start + rng.integers(1, 3))}
    cells = [leaf.cells[i] for i in sorted(chosen) if i < len(leaf.cells)]
    loose = [cell + rng.normal(0, 0.012 * leaf.size, cell.shape) for cell in cells]
    patch = drawn(leaf.mask.shape, [c.mean(0) + rng.uniform(0.75, 0.98) * (c - c.mean(0)) for c in loose])
    inside = gaussian_filter(patch, 0.7) ** 2.5
    grey_brown = np.array([0.5, 0.42, 0.31]) * rng.uniform(0.75, 1.1)
    stain(leaf, rng.uniform(0.1, 0.5) * gaussian_filter(patch, 2), (0.62, 0.6, 0.2))
    stain(leaf, 0.95 * patch, (0.2, 0.12, 0.06))
    stain(leaf, inside * (0.9 + 0.15 * noise(rng, patch.shape, 3)), grey_brown)
    leaf.height[:] -= 0.8 * patch


def mosaic(rng: Generator, leaf: Leaf, severity: float) -> None:
    """Light and dark green mottling, dark along the veins, on a puckered leaf without dead spots."""
    shape = leaf.mask.shape
    hills = noise(rng, shape, 0.12 * leaf.size) + 0.5 * noise(rng, shape, 0.05 * leaf.size)
    pattern = np.tanh(2.2 * (hills + 0.5 - 1.5 * np.exp(-leaf.rib / 2.5)))
    depth = 0.16 + 0.56 * severity
    stain(leaf, depth * np.maximum(pattern, 0), (0.54, 0.64, 0.22))
    stain(leaf, depth * np.maximum(-pattern, 0), (0.1, 0.27, 0.08))
    leaf.height[:] += (0.5 + 1.5 * severity) * gaussian_filter(-pattern, 1.5)


# ------------------------------------------------------------ conditions of the source


def powdery_mildew(rng: Generator, leaf: Leaf, severity: float) -> None:
    """White films of fungus that thin out towards the edges."""
    film = gaussian_filter(dots(rng, leaf, *scatter(rng, leaf, 2 + 14 * severity, 0.03, 0.11)), 2.5)
    stain(leaf, 0.9 * film * (0.75 + 0.3 * noise(rng, film.shape, 4)), (0.82, 0.83, 0.8))


def downy_mildew(rng: Generator, leaf: Leaf, severity: float) -> None:
    """Oily yellow areas bounded by the veins, some with a brown center."""
    cells = rng.choice(leaf.cells, 3 + int(22 * severity))
    patch = gaussian_filter(drawn(leaf.mask.shape, cells), 0.8)
    stain(leaf, 0.8 * patch, (0.7, 0.66, 0.15))
    stain(leaf, 0.8 * patch**4 * (noise(rng, patch.shape, 12) > rng.uniform(0, 1)), (0.5, 0.33, 0.14))


def anthracnose(rng: Generator, leaf: Leaf, severity: float) -> None:
    """Dark, sunken, round lesions with concentric rings."""
    centres, radii = scatter(rng, leaf, 2 + 9 * severity, 0.02, 0.065)
    for part, colour in ((1, (0.17, 0.1, 0.06)), (0.75, (0.4, 0.27, 0.16)), (0.5, (0.22, 0.13, 0.08))):
        stain(leaf, 0.9 * dots(rng, leaf, centres, radii * part), colour)
    leaf.height[:] -= 2 * gaussian_filter(dots(rng, leaf, centres, radii), 1)


def greasy_spot(rng: Generator, leaf: Leaf, severity: float) -> None:
    """Small blackish blisters with blurred yellow halos."""
    centres, radii = scatter(rng, leaf, 8 + 60 * severity, 0.01, 0.022, gathered=0.5)
    stain(leaf, 0.7 * gaussian_filter(dots(rng, leaf, centres, radii * 2), 1.5), (0.68, 0.62, 0.16))
    stain(leaf, 0.85 * dots(rng, leaf, centres, radii), (0.16, 0.11, 0.07))
    leaf.height[:] += dots(rng, leaf, centres, radii)


def scab(rng: Generator, leaf: Leaf, severity: float) -> None:
    """Olive, velvety blotches with feathered edges."""
    blots = dots(rng, leaf, *scatter(rng, leaf, 3 + 14 * severity, 0.02, 0.07))
    velvet = gaussian_filter(blots, 1.6) + 0.25 * noise(rng, blots.shape, 3) * gaussian_filter(blots, 2.5)
    stain(leaf, 0.85 * velvet, (0.19, 0.19, 0.09))


def shot_hole(rng: Generator, leaf: Leaf, severity: float) -> None:
    """Round holes where dead spots have fallen out, and a few remaining spots."""
    centres, radii = scatter(rng, leaf, 3 + 16 * severity, 0.012, 0.035)
    stain(leaf, 0.9 * dots(rng, leaf, centres[::3], radii[::3] * 1.2), (0.45, 0.24, 0.13))
    cut(leaf, dots(rng, leaf, centres[1:], radii[1:]))


def leaf_miner(rng: Generator, leaf: Leaf, severity: float) -> None:
    """Pale, winding trails with a dark line of droppings."""
    for start in scatter(rng, leaf, 1 + 4 * severity, 0, 0)[0]:
        heading = rng.uniform(0, 6.3) + np.cumsum(rng.normal(0, 0.55, 45))
        trail = start + np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), 0) * 0.022 * leaf.size
        stain(leaf, 0.85 * drawn(leaf.mask.shape, [trail], 0.024 * leaf.size), (0.72, 0.73, 0.52))
        stain(leaf, 0.6 * drawn(leaf.mask.shape, [trail[15:]], 0.006 * leaf.size), (0.35, 0.3, 0.15))


def scorch(rng: Generator, leaf: Leaf, severity: float) -> None:
    """Dry brown margins with a yellow border."""
    reach = leaf.margin / leaf.size * 12 + 0.45 * noise(rng, leaf.mask.shape, 14) - 0.3 - 1.4 * severity
    stain(leaf, 0.8 / (1 + np.exp(6 * (reach - 0.5))), (0.68, 0.6, 0.2))
    stain(leaf, 0.95 / (1 + np.exp(9 * reach)), (0.43, 0.27, 0.13))


def chlorosis(rng: Generator, leaf: Leaf, severity: float) -> None:
    """Yellow areas between veins that stay green."""
    between = (1 - np.exp(-leaf.rib / 2.5)) * (0.85 + 0.25 * noise(rng, leaf.mask.shape, 30))
    stain(leaf, (0.35 + 0.6 * severity) * between, (0.78, 0.75, 0.2))


def stripe(rng: Generator, leaf: Leaf, severity: float) -> None:
    """Pale to tan streaks that run along the veins."""
    streaks = []
    for rail in rng.choice(leaf.rails, 3 + int(16 * severity)):
        start = rng.integers(0, len(rail) - 8)
        streaks.append(rail[start : start + rng.integers(3, 8)] + rng.normal(0, 0.012 * leaf.size, 2))
    tan = gaussian_filter(drawn(leaf.mask.shape, streaks, 0.015 * leaf.size), 0.6)
    stain(leaf, 0.85 * tan, (0.72, 0.62, 0.32))


# ------------------------------------------------------------ harmless marks, light and surroundings


def wear(rng: Generator, leaf: Leaf) -> None:
    """Harmless marks on healthy and diseased leaves alike, so that a mark alone does not identify a disease."""
    shape = leaf.mask.shape
    for likely, colour in ((0.3, (0.75, 0.72, 0.65)), (0.5, (0.38, 0.25, 0.14))):  # dust, specks of soil
        if rng.random() < likely:
            specks = dots(rng, leaf, *scatter(rng, leaf, rng.integers(2, 22), 0.004, 0.014, gathered=0.3))
            stain(leaf, 0.8 * specks, np.array(colour) * rng.uniform(0.7, 1.3))
    if rng.random() < 0.2:  # insect holes
        cut(leaf, dots(rng, leaf, *scatter(rng, leaf, rng.integers(1, 3), 0.015, 0.04)))
    if rng.random() < 0.45:  # dry bruises
        bruises = dots(rng, leaf, *scatter(rng, leaf, rng.integers(1, 6), 0.012, 0.045))
        stain(leaf, 0.85 * gaussian_filter(bruises, 0.6), np.array([0.42, 0.31, 0.19]) * rng.uniform(0.6, 1.2))
    if rng.random() < 0.25:  # a brown tip
        away = np.hypot(*(np.indices(shape)[::-1] - leaf.tip[:, None, None])) + 2 * noise(rng, shape, 8)
        stain(leaf, 0.9 / (1 + np.exp(away - leaf.size * rng.uniform(0.03, 0.12))), (0.45, 0.31, 0.15))
    if rng.random() < 0.5:  # yellowing with age
        hills = noise(rng, shape, rng.uniform(0.12, 0.4) * leaf.size)
        stain(leaf, rng.uniform(0.2, 0.65) / (1 + np.exp(1 - 2 * hills)), (0.68, 0.68, 0.2))
    if rng.random() < 0.2:  # a drop of water
        drop = dots(rng, leaf, *scatter(rng, leaf, 1, 0.025, 0.05))
        leaf.height[:] += 3 * gaussian_filter(drop, 1.5)
        stain(leaf, 0.3 * drop, (0.85, 0.9, 0.9))


def lit(leaf: Leaf, light: np.ndarray, gloss: float) -> np.ndarray:
    """The colors of the leaf under a light from the direction `light` (right, down, towards the viewer)."""
    down, right = np.gradient(gaussian_filter(leaf.height, 0.5))
    length = np.sqrt(1 + right**2 + down**2)
    half = light + [0, 0, 1]
    half /= np.linalg.norm(half)
    bright = 0.45 + 0.75 * np.clip((light[2] - right * light[0] - down * light[1]) / length, 0, 1)
    shine = np.clip((half[2] - right * half[0] - down * half[1]) / length, 0, 1) ** 18
    return leaf.colour * bright[..., None] + gloss * shine[..., None]


def lay(rng: Generator, scene: np.ndarray, leaf: Leaf, light: np.ndarray) -> np.ndarray:
    """The scene with a leaf slightly above its shadow."""
    lift = rng.uniform(1, 7)
    shadow = gaussian_filter(shift(leaf.mask, (-light[1] * lift, -light[0] * lift), order=1), 0.6 + 0.4 * lift)
    leaf_lit = lit(leaf, light, rng.uniform(0.02, 0.13))
    alpha = leaf.mask[..., None]
    return scene * (1 - 0.5 * shadow[..., None]) * (1 - alpha) + leaf_lit * alpha


def indoors(rng: Generator, shape: tuple) -> np.ndarray:
    """A background of a table, paper, cloth, gray card or wood."""
    kind = rng.choice(["table", "paper", "cloth", "card", "wood"])
    base = {"paper": (0.85, 0.84, 0.8), "card": np.full(3, rng.uniform(0.3, 0.6)), "wood": (0.53, 0.41, 0.29)}
    paint = np.clip(rng.uniform(0.15, 0.75) + rng.normal(0, 0.07, 3), 0.05, 0.9)
    pattern = 0.02 * noise(rng, shape, 30) + 0.01 * noise(rng, shape, 2)
    rows, columns = np.indices(shape)
    turn = rng.uniform(0, np.pi)
    across, along = rows * np.cos(turn) + columns * np.sin(turn), columns * np.cos(turn) - rows * np.sin(turn)
    if kind == "cloth":
        pattern += 0.025 * np.sin(across * 1.7) * np.sin(along * 1.7)
    if kind == "wood":
        grain = across + 2 * noise(rng, shape, 70)
        pattern += 0.02 * np.sin(grain * 0.4) + 0.025 * np.sin(grain * 1.3 + 2 * noise(rng, shape, 25))
    return np.array(base.get(kind, paint)) * rng.uniform(0.8, 1.15) + pattern[..., None]


def outdoors(rng: Generator, shape: tuple, light: np.ndarray) -> np.ndarray:
    """A background of soil, straw or undergrowth with stems and other leaves, out of focus."""
    ground = np.array(rng.choice([(0.38, 0.29, 0.21), (0.5, 0.43, 0.3), (0.18, 0.25, 0.12)]))
    clods = 0.22 * noise(rng, shape, 22) + 0.18 * noise(rng, shape, 7) + 0.12 * noise(rng, shape, 2.5)
    scene = ground * rng.uniform(0.75, 1.4) * np.clip(1 + clods, 0.3, 2)[..., None]
    for _ in range(rng.integers(0, 4)):
        stem = drawn(shape, [rng.uniform(-0.2, 1.2, (2, 2)) * shape[::-1]], rng.uniform(1.5, 4))[..., None]
        scene = scene * (1 - stem) + stem * np.array([0.38, 0.42, 0.2]) * rng.uniform(0.6, 1.3)
    for _ in range(rng.integers(1, 4)):
        scene = lay(rng, scene, bystander(rng, shape), light)
    return gaussian_filter(scene, (*[rng.uniform(0.4, 1.3)] * 2, 0))


def bystander(rng: Generator, shape: tuple) -> Leaf:
    """A leaf of any crop that is partly outside the picture."""
    return grow_leaf(rng, rng.choice([BEAN, *CROPS.values()]), shape, rng.choice([-1, 1], 2) * rng.uniform(0.3, 0.6, 2))


def camera(rng: Generator, scene: np.ndarray, field: bool) -> Image.Image:
    """Add camera effects to the scene: uneven and colored light, exposure, blur and noise."""
    shape = scene.shape[:2]
    rows, columns = np.indices(shape) / max(shape) - 0.5
    light = 1 + rng.normal(0, 0.15) * rows + rng.normal(0, 0.15) * columns - 0.3 * (rows**2 + columns**2)
    if field and rng.random() < 0.6:  # dappled shade
        light *= 1 - rng.uniform(0.2, 0.5) / (1 + np.exp(6 * noise(rng, shape, rng.uniform(20, 50))))
    warmth = rng.normal(0, 0.07)
    tint = np.array([1 + warmth, 1 + rng.normal(0, 0.02), 1 - warmth])
    exposure = 1.15 * np.exp(rng.normal(0, 0.2 if field else 0.13))
    scene = np.clip(scene * light[..., None] * tint * exposure, 0, None) ** rng.uniform(0.8, 1.0)
    blur = rng.uniform(0.2, 1.0) if field else rng.uniform(0.1, 0.6)
    scene = gaussian_filter(scene, (blur, blur, 0)) + rng.normal(0, rng.uniform(0.003, 0.012), scene.shape)
    return Image.fromarray((np.clip(scene, 0, 1) * 255).astype(np.uint8))


# ------------------------------------------------------------ pictures and folders

SOURCE = {
    "apple": (healthy, scab, shot_hole, scorch),
    "cassava": (healthy, chlorosis, greasy_spot),
    "citrus": (healthy, leaf_miner, greasy_spot, chlorosis),
    "cucumber": (healthy, powdery_mildew, downy_mildew, leaf_miner),
    "grape": (healthy, anthracnose, downy_mildew, scorch),
    "maize": (healthy, stripe, anthracnose),
}


def draw(rng: Generator, crop: Crop, condition: Callable, field: bool) -> Image.Image:
    """Draw one leaf in one condition."""
    shape = SIZES[rng.integers(0, len(SIZES))]
    turn, rise = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.2)
    light = np.array([np.cos(turn) * np.cos(rise), np.sin(turn) * np.cos(rise), np.sin(rise)])
    scene = outdoors(rng, shape, light) if field else indoors(rng, shape)
    severity = rng.beta(1.1, 1.7)
    # A mosaic virus affects growth, so it must act before the shape of the leaf is drawn.
    leaf = grow_leaf(rng, crop, shape, pucker=severity if condition is mosaic else 0)
    condition(rng, leaf, severity)
    wear(rng, leaf)
    scene = lay(rng, scene, leaf, light)
    if field and rng.random() < 0.3:
        scene = lay(rng, scene, bystander(rng, shape), light)
    return camera(rng, scene, field)


def draw_to_file(job: tuple, output: Path, seed: int) -> None:
    """Draw and save the picture of a job."""
    name, crop, condition, field = job
    path = output / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    draw(rng, crop, condition, field).save(path, quality=JPEG_QUALITY, optimize=True)


def target_jobs(times: int) -> list[tuple]:
    """Jobs for laboratory pictures in three splits and field pictures, `times` as many as in the sample."""
    folders = (("leaves/train", 40), ("leaves/validation", 20), ("leaves/test", 40), ("leaves_field", 20))
    conditions = (healthy, rust, angular_leaf_spot, mosaic)
    return [
        (f"{folder}/{condition.__name__}/{i:03d}.jpg", BEAN, condition, folder == "leaves_field")
        for folder, count in folders
        for condition in conditions
        for i in range(count * times)
    ]


def source_jobs(per_class: int) -> list[tuple]:
    """Jobs for other crops in other conditions, every second picture in a field scene."""
    folders = (("train", per_class - per_class // 10), ("validation", per_class // 10))
    return [
        (f"{folder}/{crop}_{condition.__name__}/{i:05d}.jpg", CROPS[crop], condition, i % 2 == 1)
        for folder, count in folders
        for crop, conditions in SOURCE.items()
        for condition in conditions
        for i in range(count)
    ]


def main() -> None:
    """Parse the command line and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("target", "source"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--per_class", type=int, default=300, help="pictures per source class, including validation")
    parser.add_argument("--times", type=int, default=1, help="multiple of the number of target pictures in the sample")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    jobs = target_jobs(options.times) if options.task == "target" else source_jobs(options.per_class)
    with multiprocessing.Pool(os.cpu_count()) as pool:
        pool.map(partial(draw_to_file, output=options.output, seed=options.seed), jobs, chunksize=8)
    print(f"{len(jobs)} pictures in {options.output}")


if __name__ == "__main__":
    main()
