"""The section of a configuration that names a pair of networks of the user's own."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, field_validator

from common.config_fields import STRICT, PositiveInt
from common.own_pair import Side, parse_reference


class PairConfig(BaseModel):
    """A user's own network in both frameworks, in place of one of the family."""

    model_config = STRICT

    torch: str
    """``FILE.py:CLASS`` of the reference, relative to the configuration. Called as
    CLASS(classes, **model.options); a function that returns the network does, too."""
    paddle: str
    """The same of the port."""
    heads: Annotated[tuple[str, ...], Field(min_length=1)] = ("main",)
    """Names of what the network returns in training, the main one (``main``) first; in evaluation
    the last ones may be absent. Needless for a network that returns one tensor."""
    head_modules: tuple[str, ...] = ()
    """Children of the network whose rate is multiplied by optimizer.head_lr_mult."""
    names: dict[str, str] = {}
    """Layers that are named differently: Torch's pattern -> Paddle's (common/layer_names.py)."""
    size_multiple: PositiveInt = 1
    """Heights and widths of pictures that the network takes are multiples of this; a verification
    then rounds its odd sizes up to them."""
    unused: tuple[str, ...] = ()
    """Layers (Torch's names) that the network has and never runs."""
    ungrouped: tuple[str, ...] = ()
    """Parameters (Torch's names) that no optimizer group gets: never updated."""
    cancelled: tuple[str, ...] = ()
    """Parameters (Torch's names, * for any text) whose gradient is zero by algebra, as that of a
    bias in front of a BatchNorm: both sides compute rounding there, which no bound fits."""
    sources: dict[str, dict[str, str]] = {}
    """Side -> file -> sha256 of its bytes. Found out when a configuration is read; not to be
    written by hand. So the digests of a configuration cover the pair's code."""

    def reference(self, side: Side) -> str:
        """Return ``FILE.py:CLASS`` of a side."""
        return self.torch if side == "torch" else self.paddle

    def without_place(self) -> PairConfig:
        """Return the section without the folders that the files lie in."""
        return self.model_copy(
            update={
                "torch": parse_reference(self.torch).where,
                "paddle": parse_reference(self.paddle).where,
            }
        )

    @field_validator("torch", "paddle")
    @classmethod
    def _names_a_class_in_a_file(cls, text: str) -> str:
        parse_reference(text)
        return text

    @field_validator("heads")
    @classmethod
    def _main_is_first(cls, heads: tuple[str, ...]) -> tuple[str, ...]:
        if heads[0] != "main" or len(set(heads)) < len(heads):
            raise ValueError("expected different names, the first one main")
        return heads

    @field_validator("names")
    @classmethod
    def _stars_have_partners(cls, names: dict[str, str]) -> dict[str, str]:
        for torch, paddle in names.items():
            stars = [text.split(".").count("*") for text in (torch, paddle)]
            parts = f"{torch}.{paddle}".split(".")
            if stars[0] != stars[1] or any("*" in part and part != "*" for part in parts):
                raise ValueError(
                    f"{torch}: {paddle}: expected dotted names with as many * on both sides, each "
                    "in place of one whole part"
                )
        return names
