"""`cpuinfer pull`: fetch a model."""

from __future__ import annotations

from cpuinfer.cli.options import Json, Model


def pull(model: Model, json: Json = False) -> None:
    """Fetch a model by its alias or hf: name, check it, and print where it is."""
    from cpuinfer import hub
    from cpuinfer.cli.output import print_json

    alias = hub.ALIASES.get(model)
    path = hub.pull(alias, progress=True) if alias else hub.resolve(model, progress=True)
    if json:
        sha256 = alias.sha256 if alias else None
        print_json({"model": model, "path": path, "bytes": path.stat().st_size, "sha256": sha256})
    else:
        print(path)
