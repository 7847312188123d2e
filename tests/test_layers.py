"""The shape of the source: which folder may import which, how long a file and a function may be, and what is not used."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "regraft"
FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in FILES]

# imports point downwards: a layer may import those of a lower number, and its own folder
LAYERS = {
    "errors": -1, "config": 0, "core": 1, "losses": 2, "layers": 2, "optim": 2, "models": 2, "data": 2, "parallel": 2,
    "techniques": 3, "transforms": 3, "integrations": 3, "phases": 4, "search": 5, "serve": 5, "cli": 6,
}  # fmt: skip
TOP = 7  # the package's own interface: regraft/__init__.py, regraft/testing.py and the like
MAX_LINES, MAX_FUNCTION = 400, 60  # 40 is the aim for a function

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_IMPORTS = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
ALLOWED = {
    (
        "regraft/testing.py",
        "pickle",
    ),  # proves that a technique can be sent to another process; reads what it wrote itself
}


def layer(path: Path) -> tuple[str, int]:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return part, LAYERS.get(part, TOP)


def imports(tree: ast.AST) -> list[str]:
    """Modules imported anywhere in a file, except for type checking only."""
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for child in ast.walk(statement)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_point_downwards(path):
    part, number = layer(path)
    for name in imports(ast.parse(path.read_text())):
        pieces = name.split(".")
        if pieces[0] != "regraft" or len(pieces) < 2 or number == TOP:
            continue
        target = pieces[1]
        if target == "config" and number >= 1:
            continue
        allowed = target == part or LAYERS.get(target, TOP) < number or (LAYERS.get(target) == number == 2)
        assert allowed, f"{path.relative_to(ROOT)} ({part}) imports {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "techniques").rglob("*.py")), ids=lambda path: path.stem)
def test_techniques_never_import_each_other(path):
    names = [name for name in imports(ast.parse(path.read_text())) if name.startswith("regraft.techniques")]
    assert names == []


def test_the_core_names_no_technique():
    from regraft.config.catalogue import modules

    names = set(modules("technique"))
    for path in sorted((PACKAGE / "core").rglob("*.py")):
        used = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not used & names, path


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_a_file_has_at_most_400_lines_and_says_what_it_is(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), "no module docstring"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_function_is_longer_than_60_lines(path):
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno + 1 > MAX_FUNCTION
    }
    assert long == {}


def test_the_loop_fits_on_three_screens():
    assert len((PACKAGE / "core" / "train.py").read_text().splitlines()) < 150


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_nothing_a_file_says_is_executed_or_unpickled(path):
    where = str(path.relative_to(ROOT))
    tree = ast.parse(path.read_text())
    for name in imports(tree):
        head = name.split(".")[0]
        assert head not in FORBIDDEN_IMPORTS or (where, head) in ALLOWED, f"{where} imports {head}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in FORBIDDEN_CALLS:
            defined = called in {n.split(".")[-1] for n in imports(tree)} or called == "compile"
            assert defined, f"{where} calls {called}"
        if called in ("torch.load", "np.load", "numpy.load"):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            option, wanted = ("weights_only", "True") if called == "torch.load" else ("allow_pickle", "False")
            assert keywords.get(option, wanted) == wanted, f"{where} calls {called} in a way that can run code"
        assert called not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"), f"{where} calls {called}"


def test_importing_the_package_imports_nothing_heavy():
    import subprocess
    import sys

    heavy = "torch transformers sklearn pyarrow matplotlib scipy pandas"
    code = f"import sys, regraft; print([m for m in {heavy.split()} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"
