"""Devices run Programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpuinfer.devices.base import Device

DEVICES = ("native", "reference")


def create_device(name: str, threads: int | None = None, isa: str | None = None) -> Device:
    """The device of that name; imports only that one.

    Raises ValueError for an unknown name, and for an ISA given to a device that has no levels.
    """
    if name == "native":
        from cpuinfer.devices.native import NativeDevice

        return NativeDevice(threads=threads, isa=isa)
    if name == "reference":
        if isa is not None:
            raise ValueError(f"isa: the reference device has no ISA levels, got {isa!r}")
        from cpuinfer.devices.reference import ReferenceDevice

        return ReferenceDevice()
    raise ValueError(f"device: expected one of {', '.join(DEVICES)}, got {name!r}")
