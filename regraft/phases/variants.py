"""Many fine-tuned models on one base in memory: every one is a delta, and to switch means to ask another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from regraft.errors import ConfigError, ModelError, suggest
from regraft.models.delta import Base, bytes_of, load_base
from regraft.models.safety import read_json
from regraft.phases.predict import Prediction, Predictor, load, model_folder


@dataclass(frozen=True, kw_only=True)
class Variants:
    """Models by name on one base, whose tensors they share."""

    base: Base
    predictors: Mapping[str, Predictor]

    @property
    def names(self) -> list[str]:
        """Names of the models."""
        return list(self.predictors)

    def __getitem__(self, name: str) -> Predictor:
        """The model of a name; nothing is loaded. ConfigError with the nearest name where there is none."""
        if name not in self.predictors:
            raise ConfigError(f"no variant is called {name!r}{suggest(name, self.names)}")
        return self.predictors[name]

    def predict(self, name: str, data: Any, *, on_bad_sample: Literal["fail", "skip"] = "fail") -> list[Prediction]:
        """A prediction of one model for each row; see `Predictor.predict`."""
        return self[name].predict(data, on_bad_sample=on_bad_sample)

    @property
    def num_bytes(self) -> dict[str, int]:
        """Bytes of tensors: of the base under "base", and of each model what it does not share with the base."""
        shared = {value.data_ptr() for value in self.base.module.state_dict().values()}
        sizes = {"base": self.base.num_bytes}
        for name, predictor in self.predictors.items():
            state = predictor.model.state_dict()
            sizes[name] = bytes_of({key: value for key, value in state.items() if value.data_ptr() not in shared})
        return sizes


def load_variants(base: str | Base, folders: Mapping[str, str | Path]) -> Variants:
    """Models on one base: the base is read and hashed once, and each delta adds what it differs in.

    Args:
        base: a hub id, a local folder or an alias; or one that is loaded.
        folders: name -> folder that `regraft export RUN --delta` wrote.

    Raises:
        RunError: a folder holds no model.
        ModelError: a model is no delta, or one of another base.
        ConfigError: no folder is given, or one is called "base".
    """
    if not folders or "base" in folders:
        raise ConfigError('variants: give at least one folder by name, and call none of them "base"')
    found = {name: model_folder(Path(folder).expanduser()) for name, folder in folders.items()}
    about = {name: read_json(folder / "model.json") for name, folder in found.items()}
    for name, info in about.items():
        if "delta" not in info:
            way = f"write its delta with `regraft export {found[name]} --delta OUT`"
            raise ModelError(f"variant {name!r}: {found[name]} is a whole model; {way}")
    first = next(iter(about.values()))
    loaded = base if isinstance(base, Base) else load_base(base, modality=first["modality"])
    return Variants(base=loaded, predictors={name: load(folder, base=loaded) for name, folder in found.items()})
