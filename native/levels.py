"""Turn simd/isa.toml into what CMake needs: `levels.cmake`, and one `level_<name>.c` per library.

Run by native/CMakeLists.txt as `levels.py ISA_TOML ARCHITECTURE SELECTION OUT`; SELECTION is "all" or names joined
by commas. Raises ValueError for a table or a selection that makes no sense.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

LEVEL_C = """/* Generated from simd/isa.toml. */
#include "kernels.h"

const char *ci_level(void) {{
    return "{name}";
}}
const char *ci_build_map(void) {{
    return {build_map};
}}
"""


def base_chain(levels: dict[str, dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The level and its bases, the level first."""
    chain: list[dict[str, Any]] = []
    at: str | None = name
    while at is not None:
        if at not in levels or levels[at] in chain:
            raise ValueError(f"isa.toml: level {name!r}: base {at!r} is unknown or its own base")
        chain.append(levels[at])
        at = levels[at].get("base")
    return chain


def resolved_headers(folders: list[Path]) -> dict[str, str]:
    """Header name -> the folder whose copy an angle-bracket include finds."""
    found: dict[str, str] = {}
    for folder in folders:
        for header in sorted(folder.glob("*.h")):
            found.setdefault(header.name, folder.name)
    return dict(sorted(found.items()))


def main(table: Path, architecture: str, selection: str, out: Path) -> None:
    """Write levels.cmake and the level sources of one architecture into `out`."""
    entries = tomllib.loads(table.read_text())["level"]
    levels = {e["name"]: e for e in entries if e["architecture"] == architecture}
    libraries = list(levels)
    if selection != "all":
        unknown = [name for name in selection.split(",") if name not in libraries]
        if unknown:
            raise ValueError(f"no level {unknown} for {architecture}; there are {libraries}")
        libraries = [name for name in libraries if name in selection.split(",")]
    if not libraries:
        raise ValueError(f"isa.toml has no level for the architecture {architecture!r}")
    lines = [f"set(CPUINFER_LEVELS {' '.join(libraries)})"]
    for name in libraries:
        chain = base_chain(levels, name)
        folders = [table.parent / level["name"] for level in chain]
        flags = [flag for level in reversed(chain) for flag in level["flags"]]
        existing = " ".join(f'"{folder.as_posix()}"' for folder in folders if folder.is_dir())
        lines.append(f"set(CPUINFER_FOLDERS_{name} {existing})")
        lines.append(f"set(CPUINFER_FLAGS_{name} {' '.join(flags)})")
        headers = resolved_headers(folders).items()
        build_map = "\n           ".join(f'"{header}\\t{folder}\\n"' for header, folder in headers)
        source = LEVEL_C.format(name=name, build_map=build_map or '""')
        target = out / f"level_{name}.c"
        if not target.exists() or target.read_text() != source:
            target.write_text(source)
    (out / "levels.cmake").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
