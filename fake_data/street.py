"""A toy street: houses, pavements, traffic.

What a class looks like is close to the real thing (grey asphalt, green trees, sky at the top), and
its shape, place and colour tell it from the others, so that a network can learn it from few
pictures. Coordinates: see fake_data/objects.py.
"""

from collections.abc import Iterator
from math import pi, sin

import numpy as np

from fake_data.objects import (
    Camera,
    Shape,
    car,
    house,
    large_vehicle,
    low_barrier,
    person,
    pole,
    tree,
    two_wheeler,
)

FAR = 90.0
"""Depth in metres at which the street ends."""

_LARGE_VEHICLES = ("truck", "bus", "train")
_WHITE = (228, 228, 222)


def street(rng: np.random.Generator, *, index: int, size_hw: tuple[int, int]) -> list[Shape]:
    """Return the objects of a street scene, the farthest first.

    Args:
        rng: decides everything about the scene but
        index: number of the scene, which chooses its large vehicle: of three scenes in a row, one
            has a truck, one a bus and one a train.
        size_hw: (H, W) of the picture in pixels.
    """
    H, W = size_hw
    camera = Camera(size_hw, H * rng.uniform(0.40, 0.46), W * rng.uniform(0.44, 0.56), 1.05 * H)
    kerb = rng.uniform(4.6, 5.6)
    pavement = kerb + rng.uniform(2.2, 2.8)
    front = pavement + rng.uniform(1.2, 2.0)
    barriers = rng.permutation(["wall", "fence"])
    houses: list[tuple[float, list[Shape]]] = []
    standing = list(_traffic(rng, camera, kerb, _LARGE_VEHICLES[index % 3]))
    for side, barrier in zip((-1, 1), barriers, strict=True):
        houses += _roadside(rng, camera, side * front, str(barrier))
        standing += _pavement(rng, camera, side, kerb)
    shapes = list(_ground(rng, camera, kerb, pavement))
    # what stands on the street is never behind a house, whose near end may be nearer
    for layer in (houses, standing):
        for _, objects in sorted(layer, key=lambda item: -item[0]):
            shapes += objects
    return [*shapes, *_own_car(rng, size_hw)]


def _ground(
    rng: np.random.Generator, camera: Camera, kerb: float, pavement: float
) -> Iterator[Shape]:
    H, W = camera.size_hw
    y = round(camera.horizon_y)
    yield Shape("sky", ((0, 0), (W - 1, 0), (W - 1, y + 2), (0, y + 2)), (150, 192, 236))
    hills = [(round(W * i / 12), y - round(H * rng.uniform(0.02, 0.10))) for i in range(13)]
    yield Shape("vegetation", ((0, y + 2), *hills, (W - 1, y + 2)), (70, 104, 60))
    yield Shape("terrain", ((0, y), (W - 1, y), (W - 1, H - 1), (0, H - 1)), (140, 158, 84))
    near = camera.nearest * 0.8
    for side in (-1, 1):
        edge, lawn = side * (kerb - 0.1), side * pavement
        band = [(edge, 0, near), (edge, 0, FAR), (lawn, 0, FAR), (lawn, 0, near)]
        yield Shape("sidewalk", camera.see(band), (176, 160, 158))
    markings = tuple(
        (camera.see([(-0.12, 0, z), (0.12, 0, z), (0.12, 0, z + 2), (-0.12, 0, z + 2)]), _WHITE)
        for z in np.arange(near, FAR / 2, 5.0)
    )
    lane = [(-kerb, 0, near), (-kerb, 0, FAR), (kerb, 0, FAR), (kerb, 0, near)]
    yield Shape("road", camera.see(lane), (96, 94, 100), markings)
    bay = [(kerb - 1.8, 0, 9), (kerb, 0, 9), (kerb, 0, 14), (kerb - 1.8, 0, 14)]
    yield Shape("parking", camera.see(bay), (112, 104, 118))


def _roadside(
    rng: np.random.Generator, camera: Camera, x: float, barrier: str
) -> Iterator[tuple[float, list[Shape]]]:
    """Yield houses, and in the gaps between them a wall or a fence before trees."""
    z = camera.nearest + rng.uniform(0.5, 2.0)
    gaps = int(rng.integers(2))
    for number in range(9):
        length = rng.uniform(6, 11)
        end = min(z + length, FAR)
        if (number + gaps) % 3 == 1:
            yield end, [tree(rng, camera, (x * 1.35, end), rng.uniform(5, 8))]
            yield z, [low_barrier(camera, barrier, x, (z, end))]
        else:
            yield z, [house(rng, camera, x, (z, end))]
        z = end + 0.3
        if z >= FAR:
            return


def _pavement(
    rng: np.random.Generator, camera: Camera, side: int, kerb: float
) -> Iterator[tuple[float, list[Shape]]]:
    """Yield poles with lights and signs, pedestrians, and a bin (static: void)."""
    x = side * (kerb + 0.5)
    for number, z in enumerate(np.arange(camera.nearest + 4 + rng.uniform(0, 3), 40, 9.0)):
        yield float(z), pole(rng, camera, (x, float(z)), number + (side > 0))
    for _ in range(3):
        z = rng.uniform(6, 20)
        place = (side * (kerb + rng.uniform(0.9, 1.9)), z)
        yield z, [person(rng, camera, place, label="person")]
    z = rng.uniform(8, 14)
    bin_outline = ((-0.5, 0), (-0.5, 1), (0.5, 1), (0.5, 0))
    bin_polygon = camera.upright(bin_outline, (side * (kerb + 1.4), z), (0.6, 1.0, 0.0))
    yield z, [Shape("static", bin_polygon, (52, 60, 56))]


def _traffic(
    rng: np.random.Generator, camera: Camera, kerb: float, large: str
) -> Iterator[tuple[float, list[Shape]]]:
    """Yield parked and driving cars, one large vehicle, and two riders."""
    for side in (-1, 1):
        for z in np.arange(camera.nearest + rng.uniform(3, 5), 34, 8.0):
            if rng.random() < 0.6:
                yield float(z), car(rng, camera, side * (kerb - 1.1), float(z))
    side = int(rng.choice((-1, 1)))
    z = rng.uniform(13, 17)
    yield z, [large_vehicle(rng, camera, large, -side * rng.uniform(1.6, 2.4), z)]
    yield 26.0, car(rng, camera, side * rng.uniform(1.2, 1.8), 26.0)
    for label, x in (("motorcycle", rng.uniform(0.1, 1.3)), ("bicycle", rng.uniform(2.1, 3.0))):
        z = rng.uniform(7.5, 12)
        yield z, two_wheeler(rng, camera, label, (side * x, z))


def _own_car(rng: np.random.Generator, size_hw: tuple[int, int]) -> Iterator[Shape]:
    """Yield the bonnet of the car that carries the camera (ego vehicle: void)."""
    H, W = size_hw
    rise = rng.uniform(0.05, 0.08)
    arc = [
        (round(W * (0.12 + 0.76 * i / 10)), round(H * (1 - rise * sin(pi * i / 10))))
        for i in range(11)
    ]
    yield Shape("ego vehicle", (*arc, (W, H), (0, H)), (58, 60, 66))
