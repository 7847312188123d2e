"""Numbers and untrusted text as a reader wants them: units, thousands, signs, and no character that could mislead."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

# control characters, lone surrogates, and the marks that reorder the text around them (Unicode TR 36)
_MISLEADING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
MINUS = "−"

METRIC_NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_precision": "Macro precision",
    "macro_recall": "Macro recall",
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "subset_accuracy": "Subset accuracy",
    "hamming_loss": "Hamming loss",
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "ece": "Calibration error (ECE)",
    "ece_adaptive": "Adaptive ECE",
    "nll": "NLL (nats)",
    "brier": "Brier score",
    "mse": "MSE",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
    "spearman": "Spearman correlation",
    "pearson": "Pearson correlation",
}


def clean(value: object) -> str:
    """The text of a value in which control characters and direction marks are shown as U+FFFD."""
    return _MISLEADING.sub("\ufffd", str(value))


def short(value: object, limit: int) -> str:
    """The text of a value, cut in the middle to at most `limit` characters: both ends of a name tell names apart."""
    text = clean(value)
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 3
    return f"{text[: limit - 1 - tail]}…{text[-tail:]}" if tail else text[: limit - 1] + "…"


def metric_name(name: str) -> str:
    """A metric as a reader calls it."""
    return METRIC_NAMES.get(name, name.replace("_", " "))


def decimal(value: Any, digits: int = 3) -> str:
    """`0.941`, `12.3`, `1,234`: `digits` decimals below 10, fewer above, a true minus sign, `–` for nothing."""
    if not is_number(value):
        return "–"
    size = abs(value)
    places = digits if size < 10 else max(digits - 2, 1) if size < 1000 else 0
    if 0 < size < 0.5 * 10.0**-digits:
        return f"{value:.1e}".replace("-", MINUS)
    return f"{value:,.{places}f}".replace("-", MINUS)


def signed(value: Any, digits: int = 3) -> str:
    """`+0.004` or `−0.004`, and `0.000` when it rounds to that."""
    if not is_number(value):
        return "–"
    text = f"{abs(value):,.{digits}f}"
    return text if float(text.replace(",", "")) == 0 else ("+" if value > 0 else MINUS) + text


def whole(value: Any) -> str:
    """`12,345`."""
    return f"{int(value):,}".replace("-", MINUS) if is_number(value) else "–"


def percent(value: Any, digits: int = 1) -> str:
    """`94.1 %` of a share between 0 and 1."""
    return f"{100 * value:.{digits}f} %" if is_number(value) else "–"


def seconds(value: Any) -> str:
    """`0.42 s`, `7.9 s`, `34 s`, `2 min 52 s`, `1 h 04 min`."""
    if not is_number(value):
        return "–"
    if value < 10:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    total = round(value)
    if total < 60:
        return f"{total} s"
    minutes, rest = divmod(total, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def scaled(value: Any, unit: str, *, base: int = 1000) -> str:
    """`3.1 PFLOP`, `1.2 GiB`, `22.7 M`: three digits with the prefix that fits; base 1024 gives Ki, Mi, Gi."""
    if not is_number(value):
        return "–"
    prefixes = ("", "k", "M", "G", "T", "P", "E") if base == 1000 else ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
    power = 0
    while abs(value) >= 999.5 and power < len(prefixes) - 1:
        value, power = value / base, power + 1
    number = f"{value:.3g}" if power or value % 1 else f"{int(value)}"
    return f"{number} {prefixes[power]}{unit}".rstrip()


def size_of(value: Any) -> str:
    """`87.3 MiB` of a number of bytes."""
    return scaled(value, "B", base=1024)


def flops(value: Any) -> str:
    """`3.1 PFLOP` of a number of floating point operations."""
    return scaled(value, "FLOP")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def value_of(metrics: Any, name: str) -> float | None:
    """The value of a metric, written as `{"value": ...}` or as a number; None where it is not there."""
    entry = metrics.get(name) if isinstance(metrics, Mapping) else None
    entry = entry.get("value") if isinstance(entry, Mapping) else entry
    return float(entry) if is_number(entry) else None


def listed(values: Sequence[object], limit: int = 6) -> str:
    """`3, 17, 25, … (1,204 in all)`."""
    shown = ", ".join(short(value, 40) for value in values[:limit])
    return shown + (f", … ({len(values):,} in all)" if len(values) > limit else "")
