"""Recall of the audit for each kind of planted defect, and its precision, on data sets with a `ground_truth.json`.

    python benchmarks/audit_recall.py [FOLDER ...]      default: messy_text_dev and messy_images_dev of the shared data

Recall: a planted defect counts as found when a finding of a matching kind names its row, or, for duplicates, its row or its
original with the other one as `related`. Precision: of all distinct (kind of finding, row) pairs of the kinds below, those that
are right. A pair is right when the row, or the original it was copied from, is planted under a matching kind, or when the
related row of a duplicate is equal after Unicode NFKC, case, white space and punctuation are folded (a natural duplicate).
Everything else counts as wrong, natural near duplicates that a person would accept among them.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
import time
import unicodedata
from pathlib import Path

from regraft.config.data import DataSpec
from regraft.data.read import load
from regraft.phases.audit.run import audit

ROOT = Path(__file__).resolve().parents[1]
COPIES = {"exact-duplicate", "near-duplicate", "exact-duplicate-across-splits", "near-duplicate-across-splits", "label-conflict",
          "near-label-conflict", "label-conflict-across-splits"}  # fmt: skip
KINDS = {  # planted -> kinds of findings that count as finding it
    "label_noise": {"suspected-label-error"},
    "mislabelled": {"suspected-label-error", "label-conflict"},
    "conflicting_label_duplicates": {"label-conflict"},
    "duplicate_with_other_label": {"label-conflict", "near-label-conflict"},
    "label_spelling_variant": {"label-spelling"},
    "html_remains": {"html-remains"},
    "missing_text": {"missing-text"},
    "missing_label": {"missing-label"},
    "exact_dup_within_train": {"exact-duplicate"},
    "exact_dup_across_splits": {"exact-duplicate-across-splits"},
    "near_dup_across_splits": {"near-duplicate-across-splits"},
    "very_long_text": {"very-long-text"},
    "pii_fake": {"personal-data"},
    "wrong_encoding_row": {"encoding"},
    "mojibake_row": {"mojibake"},
    "truncated_jpeg": {"unreadable"},
    "zero_byte_file": {"unreadable"},
    "not_an_image": {"unreadable"},
    "cmyk_jpeg": {"cmyk-image"},
    "png_16bit_grey": {"deep-image", "grey-among-colour"},
    "jpeg_8bit_grey": {"grey-among-colour"},
    "exif_rotated": {"rotated-image"},
    "wrong_extension": {"wrong-extension"},
    "transparent_png": {"transparent-image"},
    "palette_gif": {"palette-image"},
    "blank_image": {"blank-image"},
    "one_pixel_image": {"tiny-image"},
    "odd_file_name": {"odd-file-name"},
    "stray_file": {"stray-file"},
    "empty_class": {"empty-class"},
}
OTHER_LABEL = ("conflicting_label_duplicates", "duplicate_with_other_label")
WHOLE = {  # planted defects without rows -> kind of finding
    "class_imbalance": "class-imbalance",
    "class_only_in_test": "unseen-label",
    "class_only_in_train": "class-only-in-train",
    "leaking_column": "leaking-column",
    "constant_column": "constant-column",
}
COUNTED = set().union(*KINDS.values()) | COPIES


def folded(text: str) -> str:
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def texts_of(data: Path) -> tuple[dict[tuple[str, str], tuple[str, int]], dict[tuple[str, int], str]]:
    """((file, id) -> (split, row), (split, row) -> folded text) of the CSV files of a folder."""
    places, texts = {}, {}
    for file in sorted(data.glob("*.csv")):
        with file.open(encoding="utf-8", errors="replace", newline="") as handle:
            for row, record in enumerate(csv.DictReader(handle)):
                places[file.name, record["id"]] = (file.stem, row)
                texts[file.stem, row] = folded(record["text"])
    return places, texts


def planted_rows(defects: dict, places: dict) -> dict[str, list[tuple[tuple, tuple | None]]]:
    """Kind -> (place, place of the original) of each planted defect that has rows."""

    def place(entry: dict | str) -> tuple:
        if isinstance(entry, str):
            return (entry.split("/")[0], entry)
        if "id" in entry:
            return places[entry["file"], entry["id"]]
        return place(entry.get("file") or entry["dir"])

    out = {}
    for kind in KINDS:
        if kind in defects:
            out[kind] = [(place(e), place(e["duplicate_of"]) if "duplicate_of" in e else None) for e in defects[kind]]
    return out


def score(folder: Path) -> dict:
    truth = json.loads((folder / "ground_truth.json").read_text())
    places, texts = texts_of(folder / "data")
    planted = planted_rows(truth["defects"], places)
    dataset = load(DataSpec(path=str(folder / "data")), keep_bad=True)
    start = time.perf_counter()
    report = audit(dataset)
    seconds = time.perf_counter() - start
    named: dict[tuple[str, tuple], tuple | None] = {}
    for finding in report.findings:
        for k, row in enumerate(finding.rows):
            split = row.split("/")[0] if isinstance(row, str) else finding.split
            other = finding.related[k] if finding.related else None
            named[finding.kind, (split, row)] = (other["split"], other["row"]) if other else None
    recall = {}
    for kind, entries in planted.items():
        hit = 0
        for place, original in entries:
            direct = any((found, place) in named for found in KINDS[kind])
            reverse = original is not None and any(named.get((found, original)) == place for found in KINDS[kind])
            hit += direct or reverse
        recall[kind] = {"found": hit, "planted": len(entries)}
    kinds = {finding.kind for finding in report.findings}
    for kind, found in WHOLE.items():
        if kind in truth["defects"]:
            recall[kind] = {"found": int(found in kinds), "planted": 1}
    right_places: dict[str, set] = {}
    for kind, entries in planted.items():
        for place, original in entries:
            other_label = {"suspected-label-error"} if kind in OTHER_LABEL else set()  # its label is wrong, too
            for found in KINDS[kind] | other_label | (COPIES if original is not None else set()):
                right_places.setdefault(found, set()).update({place} if original is None else {place, original})
    wrong: dict[str, list] = {}
    total = 0
    for (kind, place), other in named.items():
        if kind not in COUNTED:
            continue
        total += 1
        natural = kind in COPIES and other is not None and texts.get(place) == texts.get(other) and place in texts
        if place not in right_places.get(kind, set()) and not natural:
            wrong.setdefault(kind, []).append(place[1])
    errors = sum(map(len, wrong.values()))
    return {
        "recall": recall,
        "precision": round(1 - errors / max(total, 1), 4),
        "reported": total,
        "wrong": wrong,
        "seconds": round(seconds, 2),
    }


def main() -> None:
    shared = Path(os.environ.get("REGRAFT_DATA", ROOT.parent / "shared" / "data"))
    folders = [Path(a) for a in sys.argv[1:]] or [shared / "messy_text_dev", shared / "messy_images_dev"]
    missing = [str(folder) for folder in folders if not (folder / "ground_truth.json").exists()]
    if missing:
        print(f"skipped: {', '.join(missing)} not there; set REGRAFT_DATA to the folder that holds them")
        return
    results = {folder.name: score(folder) for folder in folders}
    for name, result in results.items():
        print(
            f"{name}: precision {result['precision']:.3f} over {result['reported']} reported rows, {result['seconds']} s"
        )
        for kind, count in result["recall"].items():
            print(f"  {kind:32s} {count['found']:3d} of {count['planted']:3d}")
        for kind, rows in result["wrong"].items():
            print(f"  not planted: {kind:30s} {len(rows):3d}  {rows[:12]}")
    if not sys.argv[1:]:
        target = ROOT / "benchmarks" / "results" / "audit_recall.json"
        target.write_text(json.dumps({"format": "regraft.audit_recall/1", "sets": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
