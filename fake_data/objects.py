"""What stands in a toy street: objects in metres before a pinhole camera, seen as polygons.

Coordinates of the world: x to the right of the camera, h above the ground, z ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin

import cv2
import numpy as np

Point = tuple[int, int]
Polygon = tuple[Point, ...]
Colour = tuple[int, int, int]
World = tuple[float, float, float]

_CAMERA_HEIGHT = 1.6
_BUILDINGS: tuple[Colour, ...] = (
    (172, 128, 100),
    (190, 172, 140),
    (146, 112, 108),
    (178, 160, 158),
)
_CARS: tuple[Colour, ...] = ((186, 190, 198), (48, 52, 74), (150, 28, 36), (42, 66, 140))
_CLOTHES: tuple[Colour, ...] = ((176, 52, 92), (112, 62, 128), (196, 110, 116))
_SIGNS: tuple[Colour, ...] = ((206, 32, 42), (26, 76, 196), (234, 202, 44))
_DARK, _GLASS, _SKIN, _WHITE = (26, 26, 30), (74, 92, 108), (218, 172, 142), (228, 228, 222)

# outlines in units of (width, height), feet at (0, 0)
_PERSON = (
    *((-0.36, 0.0), (-0.40, 0.46), (-0.50, 0.50), (-0.48, 0.80), (-0.16, 0.86), (-0.22, 0.94)),
    *((-0.12, 1.0), (0.12, 1.0), (0.22, 0.94), (0.16, 0.86), (0.48, 0.80), (0.50, 0.50)),
    *((0.40, 0.46), (0.36, 0.0), (0.08, 0.0), (0.0, 0.38), (-0.08, 0.0)),
)
_TROUSERS = ((-0.36, 0.0), (-0.40, 0.46), (0.40, 0.46), (0.36, 0.0), (0.08, 0.0), (0.0, 0.38))
_BIKE = (
    *((-0.50, 0.20), (-0.44, 0.50), (-0.26, 0.62), (-0.20, 0.92), (0.0, 0.72), (0.22, 0.80)),
    *((0.20, 1.0), (0.32, 1.0), (0.34, 0.64), (0.46, 0.52), (0.50, 0.20), (0.38, 0.0)),
    *((0.14, 0.06), (0.0, 0.22), (-0.14, 0.06), (-0.38, 0.0)),
)


@dataclass(frozen=True)
class Shape:
    """One annotated object: what is drawn later covers what was drawn before."""

    label: str
    """Name in Cityscapes' label table."""
    polygon: Polygon
    """(x, y) in pixels, may reach outside the picture."""
    colour: Colour
    """RGB."""
    details: tuple[tuple[Polygon, Colour], ...] = ()
    """Windows, wheels, markings: painted on the picture, no objects of their own."""


@dataclass(frozen=True)
class Camera:
    """Projection of the world into the picture."""

    size_hw: tuple[int, int]
    horizon_y: float
    vanishing_x: float
    focal: float

    def see(self, points: Sequence[World]) -> Polygon:
        """Return the pixels at which points (x, h, z) in metres appear."""
        return tuple(
            (
                round(self.vanishing_x + self.focal * x / z),
                round(self.horizon_y + self.focal * (_CAMERA_HEIGHT - h) / z),
            )
            for x, h, z in points
        )

    def upright(
        self, outline: Sequence[tuple[float, float]], place: tuple[float, float], size: World
    ) -> Polygon:
        """Return an outline in units of size = (width, height, foot) standing at (x, z)."""
        (x, z), (width, height, foot) = place, size
        return self.see([(x + u * width, foot + v * height, z) for u, v in outline])

    def box(
        self, x: tuple[float, float], h: tuple[float, float], z: tuple[float, float]
    ) -> Polygon:
        """Return the outline of a box."""
        corners = self.see([(a, b, c) for a in x for b in h for c in z])
        hull = cv2.convexHull(np.asarray(corners, np.int32))[:, 0]
        return tuple((int(a), int(b)) for a, b in hull)

    @property
    def nearest(self) -> float:
        """Depth at which the ground leaves the picture at its lower edge."""
        return self.focal * _CAMERA_HEIGHT / (self.size_hw[0] - self.horizon_y)


def house(rng: np.random.Generator, camera: Camera, x: float, z: tuple[float, float]) -> Shape:
    """Return a house whose front, along the street at x, reaches over the depths z."""
    height = rng.uniform(6.5, 13)
    windows: list[tuple[Polygon, Colour]] = []
    for h in np.arange(1.2, height - 1.5, 3.0):
        for near in np.arange(z[0] + 0.8, z[1] - 1.2, 2.6):
            corners = [
                (x, h, near),
                (x, h, near + 1.2),
                (x, h + 1.6, near + 1.2),
                (x, h + 1.6, near),
            ]
            windows.append((camera.see(corners), _GLASS))
    colour = _BUILDINGS[rng.integers(len(_BUILDINGS))]
    hull = camera.box((x, x * 2.5), (0, height), z)
    return Shape("building", hull, _varied(rng, colour, 12), tuple(windows))


def low_barrier(camera: Camera, label: str, x: float, z: tuple[float, float]) -> Shape:
    """Return a fence or wall along the street at x over the depths z."""
    height, colour = (1.7, (118, 84, 52)) if label == "fence" else (2.4, (128, 124, 146))
    face = [(x, 0, z[0]), (x, 0, z[1]), (x, height, z[1]), (x, height, z[0])]
    return Shape(label, camera.see(face), colour)


def tree(
    rng: np.random.Generator, camera: Camera, place: tuple[float, float], height: float
) -> Shape:
    """Return a tree at (x, z)."""
    # a trunk, and a crown with a ragged edge
    angles = [pi * (-0.4 + 1.8 * i / 15) for i in range(16)]
    radii = rng.uniform(0.8, 1.1, 16)
    crown = [
        (0.5 * r * cos(a), 0.62 + 0.38 * r * sin(a)) for a, r in zip(angles, radii, strict=True)
    ]
    outline = [(-0.05, 0.0), (0.05, 0.0), *crown]
    polygon = camera.upright(outline, place, (height * 0.75, height, 0.0))
    trunk = camera.upright(
        [(-0.05, 0), (0.05, 0), (0.05, 0.3), (-0.05, 0.3)], place, (height * 0.75, height, 0.0)
    )
    return Shape("vegetation", polygon, _varied(rng, (62, 108, 48), 12), ((trunk, (86, 66, 48)),))


def pole(
    rng: np.random.Generator, camera: Camera, place: tuple[float, float], number: int
) -> list[Shape]:
    """Return a pole at (x, z) with a traffic light (odd number) or a traffic sign."""
    square = ((-0.5, 0.0), (-0.5, 1.0), (0.5, 1.0), (0.5, 0.0))
    post = Shape("pole", camera.upright(square, place, (0.16, 5.0, 0.0)), (116, 118, 122))
    if number % 2:
        lamps = ((0.72, (232, 44, 40)), (0.41, (240, 180, 50)), (0.10, (50, 210, 100)))
        lit = lamps[rng.integers(3)]
        lamp = camera.upright(square, place, (0.34, 0.26, 2.9 + 1.2 * lit[0]))
        return [
            post,
            Shape(
                "traffic light",
                camera.upright(square, place, (0.56, 1.3, 2.8)),
                (44, 44, 34),
                ((lamp, lit[1]),),
            ),
        ]
    octagon = [(0.5 * cos(pi * i / 4), 0.5 + 0.5 * sin(pi * i / 4)) for i in range(8)]
    board = camera.upright(octagon, place, (1.0, 1.0, 3.0))
    bar = camera.upright(square, place, (0.6, 0.2, 3.4))
    return [post, Shape("traffic sign", board, _SIGNS[rng.integers(3)], ((bar, _WHITE),))]


def person(
    rng: np.random.Generator,
    camera: Camera,
    place: tuple[float, float],
    *,
    label: str,
    foot: float = 0.0,
) -> Shape:
    """Return a standing or riding figure at (x, z), its feet above the ground by foot metres."""
    size = (0.75, rng.uniform(1.65, 1.9), foot)
    clothes = (236, 140, 36) if label == "rider" else _CLOTHES[rng.integers(len(_CLOTHES))]
    head = ((-0.20, 0.87), (-0.20, 0.97), (0.20, 0.97), (0.20, 0.87))
    details = (
        (camera.upright(_TROUSERS, place, size), (52, 54, 84)),
        (camera.upright(head, place, size), _SKIN),
    )
    return Shape(label, camera.upright(_PERSON, place, size), _varied(rng, clothes, 10), details)


def car(rng: np.random.Generator, camera: Camera, x: float, z: float) -> list[Shape]:
    """Return a car seen from behind, its back at (x, z), and its license plate."""
    colour = _varied(rng, _CARS[rng.integers(len(_CARS))], 10)
    body = camera.box((x - 0.9, x + 0.9), (0.2, 0.95), (z, z + 4.2))
    cabin = camera.box((x - 0.72, x + 0.72), (0.9, 1.5), (z + 0.5, z + 3.2))
    hull = cv2.convexHull(np.asarray([*body, *cabin], np.int32))[:, 0]

    def back(x0: float, x1: float, h0: float, h1: float) -> Polygon:
        return camera.see([(x + a, b, z) for a, b in ((x0, h0), (x0, h1), (x1, h1), (x1, h0))])

    details = (
        (back(-0.9, 0.9, 0.2, 0.95), _darker(colour, 0.8)),
        (back(-0.66, 0.66, 1.0, 1.42), _GLASS),
        *((back(a, a + 0.3, 0.62, 0.8), (214, 40, 40)) for a in (-0.86, 0.56)),
        *((back(a, a + 0.26, 0.0, 0.36), _DARK) for a in (-0.84, 0.58)),
        (back(-0.26, 0.26, 0.42, 0.6), _WHITE),
    )
    polygon = tuple((int(a), int(b)) for a, b in hull)
    # Cityscapes annotates plates, with id -1: no label file shows them
    plate = Shape("license plate", details[-1][0], _WHITE)
    return [Shape("car", polygon, colour, details), plate]


def large_vehicle(
    rng: np.random.Generator, camera: Camera, label: str, x: float, z: float
) -> Shape:
    """Return a truck, bus or train seen from behind, its back at (x, z)."""
    colour, height, length = {
        "truck": ((222, 214, 178), 3.4, 7.0),
        "bus": ((226, 178, 30), 3.1, 11.0),
        "train": ((34, 140, 122), 3.7, 24.0),
    }[label]
    colour = _varied(rng, colour, 8)
    polygon = camera.box((x - 1.25, x + 1.25), (0.25, height), (z, z + length))

    def back(u0: float, u1: float, v0: float, v1: float) -> Polygon:
        corners = ((u0, v0), (u0, v1), (u1, v1), (u1, v0))
        return camera.see([(x + 1.25 * u, 0.25 + (height - 0.25) * v, z) for u, v in corners])

    glass = (back(-0.8, 0.8, 0.5, 0.85), _GLASS)
    doors = (back(-0.02, 0.02, 0.1, 0.95), _darker(colour, 0.5))
    details = (
        (back(-1, 1, 0, 1), _darker(colour, 0.88)),
        doors if label == "truck" else glass,
        *((back(a, a + 0.22, 0.08, 0.16), (214, 40, 40)) for a in (-0.95, 0.73)),
    )
    return Shape(label, polygon, colour, details)


def two_wheeler(
    rng: np.random.Generator, camera: Camera, label: str, place: tuple[float, float]
) -> list[Shape]:
    """Return a rider and the motorcycle or bicycle, crossing the street at (x, z)."""
    heavy = label == "motorcycle"
    size = (2.0, 1.15, 0.0) if heavy else (1.7, 1.05, 0.0)
    colour = (44, 36, 110) if heavy else (30, 120, 150)
    circle = [(0.18 * cos(pi * i / 5), 0.22 + 0.22 * sin(pi * i / 5)) for i in range(10)]
    wheels = tuple(
        (camera.upright([(u + c, v) for u, v in circle], place, size), _DARK) for c in (-0.3, 0.3)
    )
    bike = Shape(label, camera.upright(_BIKE, place, size), colour, wheels)
    # the rider sits behind the frame as seen by the camera, so the bike is drawn over the legs
    return [person(rng, camera, (place[0] - 0.1, place[1]), label="rider", foot=0.35), bike]


def _varied(rng: np.random.Generator, colour: Colour, amount: int) -> Colour:
    r, g, b = (int(np.clip(c + rng.integers(-amount, amount + 1), 0, 255)) for c in colour)
    return r, g, b


def _darker(colour: Colour, factor: float) -> Colour:
    r, g, b = (int(c * factor) for c in colour)
    return r, g, b
