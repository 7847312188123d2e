"""What the phases of one main job share: the run directory, the recipe, the data, the model, and who is told about it."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from regraft.config.recipe import RecipeSpec, dump_recipe
from regraft.core.descent import Precision
from regraft.core.stopping import Stop
from regraft.data.dataset import Dataset
from regraft.data.read import load
from regraft.models.delta import weights_hash
from regraft.phases.machine import differences, machine, version_of
from regraft.phases.materials import Materials, prepare, readable_model
from regraft.phases.metering import Meter, metered
from regraft.phases.progress import Reporter, Silent
from regraft.phases.rundir import MANIFEST, RECIPE, RunDirectory

MANIFEST_FORMAT = "regraft.manifest/1"


@dataclass
class Job:
    """One main job. Everything expensive is made when it is first asked for."""

    run: RunDirectory
    spec: RecipeSpec
    reporter: Reporter = field(default_factory=Silent)
    module: nn.Module | None = None  # the model, where it is a Python module
    stop: Stop = field(default_factory=Stop)  # is asked at the end of every step
    began: float = field(default_factory=time.perf_counter)
    dataset_: Dataset | None = None
    materials_: Materials | None = None
    model_: nn.Module | None = None
    found: dict[str, Any] = field(default_factory=dict)  # what a phase computed and a later one of this process can use

    @property
    def dataset(self) -> Dataset:
        """The data set, read."""
        if self.dataset_ is None:
            self.dataset_ = load(self.spec.main_data())
        return self.dataset_

    @property
    def materials(self) -> Materials:
        """The data set prepared for the model."""
        if self.materials_ is None:
            self.materials_ = prepare(self.dataset, self.spec.main_data(), self.spec.main_model(), self.module)
        return self.materials_

    @property
    def base(self) -> nn.Module:
        """The model as it came, with a head that reads its last layer. Phases work on copies of it."""
        if self.model_ is None:
            made = readable_model(self.spec.main_model(), self.materials, self.module, seed=self.spec.seed)
            self.model_ = made.eval()
        return self.model_

    @property
    def precision(self) -> Precision:
        """Of forward passes over whole splits."""
        chosen = self.spec.probe.precision if self.spec.probe else "fp32"
        return "fp32" if chosen == "auto" else chosen

    @property
    def elapsed(self) -> float:
        """Seconds since the job began in this process."""
        return time.perf_counter() - self.began

    def use(self, spec: RecipeSpec) -> None:
        """Go on with a changed recipe; what depends on its data limits is made anew."""
        if spec.main_data() != self.spec.main_data():
            self.materials_ = None
        self.spec = spec
        self.run.write_text(RECIPE, dump_recipe(spec))

    @contextmanager
    def phase(self, name: str, what: str) -> Generator[Meter]:
        """A phase: announced, metered, and its line added to the ledger when it ends."""
        self.reporter.phase(name, what)
        with metered(name) as meter:
            yield meter
        self.run.add_cost(meter.line())

    def write_manifest(self) -> None:
        """Seeds, threads, versions, hashes, licence and hardware, for whoever wants the same numbers again."""
        base = self.base
        self.run.write_json(
            MANIFEST,
            {
                "format": MANIFEST_FORMAT,
                "regraft": version_of("regraft"),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seed": self.spec.seed,
                **machine(),
                "data": {
                    "name": self.dataset.path.name,
                    "path": str(self.dataset.path),
                    "modality": self.dataset.schema.modality,
                    "fingerprint": self.dataset.fingerprint,
                },
                "model": {
                    "name": self.spec.main_model().name or type(base).__name__,
                    "type": getattr(base, "model_type", None),
                    "licence": getattr(base, "licence", None),
                    "sha256": weights_hash(base),
                },
            },
        )

    def compare_machine(self) -> list[str]:
        """Called on a resume: what differs from when the run began is said, and kept in the manifest, which the report shows."""
        manifest = self.run.read_json(MANIFEST)
        found = differences(manifest, machine())
        for sentence in found:
            self.reporter.say(sentence)
        known = manifest.get("resumed elsewhere", [])
        if not set(found) <= set(known):
            self.run.write_json(
                MANIFEST, manifest | {"resumed elsewhere": [*known, *(s for s in found if s not in known)]}
            )
        return found
