"""What the builders of failure cases share: one step's records, inputs and configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.config import Config
from pipeline.failure import FailureCase
from pipeline.judge import Result
from pipeline.records import Array


@dataclass(frozen=True)
class CaseMaker:
    """Makes the cases of one failing step."""

    result: Result
    reference: Mapping[str, Array]
    actual: Mapping[str, Array]
    inputs: Mapping[str, Array]
    config: Config

    @property
    def dtype(self) -> str:
        """The dtype that the step was recorded in."""
        return self.result.dtype

    def both(self, key: str, name: str) -> dict[str, Array]:
        """Return a recorded tensor of both sides as ``name/reference`` and ``name/actual``."""
        return {f"{name}/reference": self.reference[key], f"{name}/actual": self.actual[key]}

    def sections(self, *names: str) -> dict[str, Any]:
        """Return sections of the configuration as plain values, without the machine's paths."""
        return {
            name: getattr(self.config, name).model_dump(mode="json")
            | ({"root": ".", "train_list": None, "val_list": None} if name == "data" else {})
            for name in names
        }

    def case(
        self,
        key: str,
        kind: str,
        name: str,
        where: str,
        arrays: Mapping[str, Array],
        settings: Mapping[str, Any],
    ) -> FailureCase:
        """Return the case of one recorded tensor; see FailureCase for the arguments.

        ``reference`` and ``actual`` are taken from the records unless ``arrays`` has them.
        """
        sides = {"reference": self.reference[key], "actual": self.actual[key]}
        return FailureCase(
            step=self.result.step.name,
            dtype=self.dtype,
            key=key,
            kind=kind,
            name=name,
            where=where,
            arrays={**sides, **arrays},
            settings=settings,
        )
