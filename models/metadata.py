"""Reading numbers out of a model file's metadata, which is untrusted until its type and range are checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Metadata:
    """The metadata of one architecture: keys are given without the prefix "<architecture>."."""

    values: Mapping[str, Any]
    architecture: str

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        return self._name(key) in self.values

    def integer(self, key: str, least: int, most: int, default: int | None = None) -> int:
        """A whole number in [least, most]; missing without a default, or anything else, raises ValueError."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise self._error(key, value, f"a whole number from {least} to {most}")
        if not least <= value <= most:
            raise self._error(key, value, f"a whole number from {least} to {most}")
        return int(value)

    def number(self, key: str, least: float, most: float, default: float | None = None) -> float:
        """A finite number in [least, most]; missing without a default, or anything else, raises ValueError."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise self._error(key, value, f"a number from {least} to {most}")
        if not least <= value <= most:
            raise self._error(key, value, f"a number from {least} to {most}")
        return float(value)

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Raise ValueError for a key of this architecture that is not known and not off (0, false or empty)."""
        prefix = f"{self.architecture}."
        for name, value in self.values.items():
            key = name.removeprefix(prefix)
            if name.startswith(prefix) and key not in known and not _is_off(value):
                raise ValueError(
                    f"metadata {name} = {short(value)}: this feature of {self.architecture} models is not "
                    "supported; use a model without it"
                )

    def _name(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def _get(self, key: str, default: float | None) -> Any:
        value = self.values.get(self._name(key), default)
        if value is None:
            raise ValueError(f"metadata {self._name(key)} is missing; the model file is incomplete")
        return value

    def _error(self, key: str, value: object, wanted: str) -> ValueError:
        return ValueError(f"metadata {self._name(key)} = {short(value)}; it must be {wanted}")


def _is_off(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.size == 0
    return isinstance(value, (bool, int, float, str, list, tuple)) and not value


def short(value: object) -> str:
    """The value for an error message; a hostile file's may be long."""
    if isinstance(value, (bool, int, float, np.generic)):
        return str(value)
    return repr(value[:60]) if isinstance(value, str) else f"a {type(value).__name__}"
