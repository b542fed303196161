"""Devices run Programs."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cpuinfer.devices.base import Device

DEVICES = ("native", "numba", "reference")
AUTO = "auto"
"""In place of a device's name: native, or numba where no native library loads."""


class Choice(NamedTuple):
    """A device's name, and what a user should know of it: why this one, and what would be faster; or nothing."""

    name: str
    note: str


def choose_device(name: str = AUTO, isa: str | None = None) -> Choice:
    """The device to use, where `name` leaves that open, and what to say of it.

    Raises ValueError for AUTO where no native library loads and Numba is not installed.
    """
    if name not in (AUTO, "numba"):
        return Choice(name, "")
    why = _missing_native(isa)
    if name == AUTO and not why:
        return Choice("native", "")
    if name == AUTO and find_spec("numba") is None:
        raise ValueError(
            f"{why}; or install Numba, which needs no compiler: pip install 'cpuinfer[numba]'"
        )
    faster = why or "as asked for; the native kernels load here and are several times faster"
    return Choice("numba", f"device numba: {faster}{_compilation()}")


def _missing_native(isa: str | None) -> str:
    """Why no native library loads; nothing where one does, or where the caller insists on a level."""
    from cpuinfer.machine.isa import ENVIRONMENT, load

    if isa or os.environ.get(ENVIRONMENT):
        return ""
    try:
        load()
    except ValueError as error:
        return str(error)
    return ""


def _compilation() -> str:
    """What to say of a first start with Numba."""
    if find_spec("numba") is None:
        return ""
    from cpuinfer.devices.numba.compiler import is_compiled

    return "" if is_compiled() else " (compiling its kernels, once: up to a minute)"


def create_device(name: str, threads: int | None = None, isa: str | None = None) -> Device:
    """The device of that name, or AUTO; imports only that one.

    Raises ValueError for an unknown name, for an ISA given to a device that has no levels, and for one that cannot run.
    """
    name = choose_device(name, isa).name
    if name == "native":
        from cpuinfer.devices.native import NativeDevice

        return NativeDevice(threads=threads, isa=isa)
    if name not in DEVICES:
        raise ValueError(f"device: expected one of {AUTO}, {', '.join(DEVICES)}, got {name!r}")
    if isa is not None:
        raise ValueError(f"isa: the {name} device has no ISA levels, got {isa!r}")
    if name == "numba":
        if find_spec("numba") is None:
            raise ValueError("device: numba is not installed; pip install 'cpuinfer[numba]'")
        from cpuinfer.devices.numba.device import NumbaDevice

        return NumbaDevice(threads=threads)
    from cpuinfer.devices.reference import ReferenceDevice

    return ReferenceDevice()
