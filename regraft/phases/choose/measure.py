"""Before the probe: the precision this machine is fast in, and how many rows the budget can look at."""

from __future__ import annotations

import time

import numpy as np
import torch

from regraft.config.recipe import ProbeSpec
from regraft.core.descent import Precision
from regraft.data.encode import encode_split
from regraft.errors import BudgetError, ConfigError, suggest
from regraft.models.graft import Graft
from regraft.phases.choose.features import Features, all_features
from regraft.phases.choose.fit import fit_head
from regraft.phases.choose.precision import choose_precision
from regraft.phases.choose.probe import Heights
from regraft.phases.choose.rules import STRATEGIES
from regraft.phases.job import Job

PROBE_SHARE, EVALUATE_SHARE = 0.3, 0.15  # of the time that is left, at most
MOST_VALID = 50_000  # validation rows that are used: a share of correct answers is known to 0.2 points by then
FEWEST_ROWS = 200  # a probe on fewer rows than this, of more, says little
SAMPLE_ROWS, REPEATED = 128, 16  # rows that are timed; how often they stand below each other to time a fit
FIT_STEPS, TIMED_STEPS = 90, 6  # of L-BFGS: what both fits of a head take on large data, and what is timed
FEW_IMAGES, USUAL_VIEWS = 5000, 4


def measure(job: Job) -> None:
    """Resolve what depends on the machine: precision, and how many rows the budget can look at. Written into the recipe."""
    spec = job.spec
    if spec.strategy is not None and spec.strategy not in STRATEGIES:
        raise ConfigError(f"--strategy: no strategy is called {spec.strategy!r}{suggest(spec.strategy, STRATEGIES)}")
    probe = spec.probe or ProbeSpec()
    if spec.reasons or (spec.race is not None and probe.precision != "auto"):  # measured before, or written by hand
        return
    sample = encode_split(job.dataset, "train", job.materials.preprocessor, rows=_some_rows(job, 64))
    precision, reason = choose_precision(job.base, sample, asked=probe.precision)
    probe = probe.replaced(precision=precision)
    reasons = [reason]
    data = spec.main_data()
    rows = {name: len(split) for name, split in job.dataset.splits.items()}
    if data.limit_valid is None and rows.get("valid", 0) > MOST_VALID:
        data = data.replaced(limit_valid=MOST_VALID)
        reasons.append(
            f"valid: {MOST_VALID:,} of {rows['valid']:,} rows are used; more would not tell strategies apart"
        )
    if spec.budget_s is not None:
        fields = {"train": "limit", "valid": "limit_valid", "test": "limit_test"}
        for name, limit in _row_limits(job, rows, precision, spec.budget_s).items():
            asked = getattr(data, fields[name])
            if asked is None or asked > limit:
                data = data.replaced(**{fields[name]: limit})
                reasons.append(f"{name}: {limit:,} of {rows[name]:,} rows are used, which is what the budget allows")
    job.use(spec.replaced(data={**spec.data, "main": data}, probe=probe, reasons=tuple(reasons)))
    for sentence in reasons:
        job.reporter.say(sentence)


def augmented_views(job: Job, rows: int) -> int:
    """Augmented views of each of `rows` images that the heads are fitted on besides the image itself."""
    if job.dataset.schema.modality != "image" or not isinstance(job.base, Graft):
        return 0
    asked = (job.spec.probe or ProbeSpec()).views
    return asked if asked is not None else USUAL_VIEWS * (rows <= FEW_IMAGES)


def _some_rows(job: Job, count: int) -> np.ndarray:
    total = len(job.dataset.splits["train"])
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))


def _row_limits(job: Job, rows: dict[str, int], precision: Precision, budget_s: float) -> dict[str, int]:
    """Rows of each split that fit into their share of the time left; only the splits that must be cut."""
    reading, features = _time_of_reading(job, precision)
    left = budget_s - job.elapsed
    fewest = min(FEWEST_ROWS, rows["train"])
    if fewest * reading > left:
        raise BudgetError(
            f"--budget: {budget_s:g} s, less {job.elapsed:.1f} s for the start and the audit, allow "
            f"{max(0, int(left / reading)):,} rows at {reading * 1e3:.1f} ms a row, too few for the probe; give at least "
            f"{job.elapsed + fewest * reading / PROBE_SHARE:.0f} s"
        )
    fitting = _time_of_fitting(job, features) if 3 * rows["train"] * reading > PROBE_SHARE * left else 0.0
    looks = 1 + augmented_views(job, rows["train"])
    costs = {"train": looks * (reading + fitting), "valid": looks * (reading + fitting), "test": reading}
    shares = {"train": PROBE_SHARE, "valid": 0.25 * EVALUATE_SHARE, "test": 0.75 * EVALUATE_SHARE}
    limits = {name: max(FEWEST_ROWS, int(shares[name] * left / costs[name])) for name in shares if name in rows}
    return {name: limit for name, limit in limits.items() if limit < rows[name]}


def _time_of_reading(job: Job, precision: Precision) -> tuple[float, Features]:
    """Seconds a row of reading, encoding and one forward pass; and the features of the rows this was measured on."""
    rows = _some_rows(job, SAMPLE_ROWS)
    begin = time.perf_counter()
    sample = encode_split(job.dataset, "train", job.materials.preprocessor, rows=rows)
    features = all_features(job.base, sample, precision=precision)
    return (time.perf_counter() - begin) / len(rows), features


def _time_of_fitting(job: Job, features: Features) -> float:
    """Seconds a row of fitting the widest head, on train and then on train and valid."""
    problem = job.materials.problem
    matrix = Heights(reads=tuple(features)).of(problem, *[features] * REPEATED)
    targets = torch.arange(len(matrix.x)) % problem.num_outputs
    if problem.task == "multilabel":
        targets = torch.nn.functional.one_hot(targets, problem.num_outputs).float()
    begin = time.perf_counter()
    fit_head(matrix, targets, problem, l2=0.01, max_iterations=TIMED_STEPS)
    share = 1.0 if problem.task == "regression" else FIT_STEPS / TIMED_STEPS
    return share * (time.perf_counter() - begin) / len(matrix.x)
