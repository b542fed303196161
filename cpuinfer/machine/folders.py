"""Where files of this user's cpuinfer are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder: $CPUINFER_CACHE, $XDG_CACHE_HOME/cpuinfer or ~/.cache/cpuinfer; it may not exist yet.

    An empty variable counts as unset, and so does a relative XDG_CACHE_HOME (XDG base directory specification).
    """
    if own := os.environ.get("CPUINFER_CACHE"):
        return Path(own).absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "cpuinfer"
