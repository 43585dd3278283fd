"""Names of the same layer on the two sides of a user's own pair, where they differ.

``names: {backbone.*.conv: stem.*.conv1}`` says that Torch's ``backbone.0.conv`` is Paddle's
``stem.0.conv1``. A pattern is for the layer (or parameter) it names and for all below it; a ``*``
stands for one part of a name and is carried over, the first for the first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from common.errors import ConfigError

ANY = "*"


def renaming(names: Mapping[str, str]) -> Callable[[str], str]:
    """Return the function from Paddle's name of a layer, parameter or buffer to Torch's.

    Args:
        names: Torch's pattern -> Paddle's. The longest that fits counts; a name that none fits
            stays as it is.
    """
    # the longest first, and of equals the one with fewer stars
    rules = sorted(
        ((paddle.split("."), torch.split(".")) for torch, paddle in names.items()),
        key=lambda rule: (-len(rule[0]), rule[0].count(ANY)),
    )

    def rename(name: str) -> str:
        parts = name.split(".")
        for pattern, target in rules:
            if _fits(pattern, parts):
                stars = [p for p, rule in zip(parts, pattern, strict=False) if rule == ANY]
                mapped = [stars.pop(0) if part == ANY else part for part in target]
                return ".".join([*mapped, *parts[len(pattern) :]])
        return name

    return rename


def _fits(pattern: list[str], parts: list[str]) -> bool:
    head = parts[: len(pattern)]
    pairs = zip(pattern, head, strict=False)
    return len(head) == len(pattern) and all(rule in (ANY, part) for rule, part in pairs)


def check_patterns(patterns: Collection[str], known: Collection[str], *, where: str) -> None:
    """See that every pattern names something.

    Args:
        patterns: of one side.
        known: names of that side's layers and parameters.
        where: what to call the network in a message.

    Raises:
        ConfigError: a pattern fits no name; it would be a misspelling that nobody notices.
    """
    split = [name.split(".") for name in known]
    idle = [p for p in patterns if not any(_fits(p.split("."), parts) for parts in split)]
    if idle:
        tops = dict.fromkeys(parts[0] for parts in split)
        raise ConfigError(
            f"model.pair.names: {', '.join(idle)} names no layer of {where}; its parts: "
            f"{', '.join(tops)}"
        )


def check_one_to_one(raw: Collection[str], rename: Callable[[str], str], *, where: str) -> None:
    """See that no two names become one.

    Raises:
        ConfigError: two do.
    """
    seen: dict[str, str] = {}
    for name in raw:
        other = seen.setdefault(rename(name), name)
        if other != name:
            raise ConfigError(
                f"model.pair.names turns {other} and {name} of {where} into the same name "
                f"{rename(name)}; every layer needs one of its own"
            )
