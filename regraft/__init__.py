"""regraft: from a pretrained network and your own data to a calibrated, documented model.

    import regraft as rg
    run = rg.adapt("tickets.csv", model="minilm", out="runs/tickets", budget="3m")
    run.predict(["card has not arrived"])

Importing it costs nothing: every name below is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regraft.api import adapt, audit, export_delta, load, load_variants, plan, resume, train

    __version__: str

__all__ = ["__version__", "adapt", "audit", "export_delta", "load", "load_variants", "plan", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("regraft")
    if name in __all__:
        from regraft import api

        return getattr(api, name)
    raise AttributeError(f"module 'regraft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
