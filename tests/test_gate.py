"""The gate: no file of the project runs what a file says, reads a pickle, starts a shell or trusts the network unchecked.

Every use of a dangerous name is either absent or one of the places of `ALLOWED`, with the reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("regraft", "regraft_recipes", "benchmarks", "examples", "docs")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))

MODULES = {  # modules whose import is refused
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "jsonpickle", "telnetlib", "ftplib",
    "xmlrpc", "pty", "code", "codeop", "runpy", "xml.etree.ElementTree", "xml.dom", "xml.sax", "hydra",
}  # fmt: skip
CALLS = {  # calls that are refused, whatever their arguments
    "eval", "exec", "compile", "__import__", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all",
    "yaml.full_load", "yaml.full_load_all", "os.system", "os.popen", "os.execv", "os.execve", "os.execvp", "os.spawnv",
    "os.spawnl", "tempfile.mktemp", "ssl._create_unverified_context", "torch.hub.load", "torch.jit.load", "torch.package",
    "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell", "pandas.read_pickle",
    "tarfile.open", "zipfile.ZipFile.extractall", "shutil.unpack_archive", "importlib.import_module", "import_module",
    "Image.open", "PIL.Image.open", "markupsafe.Markup", "Markup", "hashlib.md5", "hashlib.sha1", "random.seed",
}  # fmt: skip
METHODS = {"extractall", "allow_unsafe", "set_ciphers"}  # of any object
KEYWORDS = {  # (keyword, value) that is refused in any call
    ("trust_remote_code", "True"), ("shell", "True"), ("allow_pickle", "True"), ("verify", "False"), ("weights_only", "False"),
    ("autoescape", "False"), ("use_safetensors", "False"), ("check_hostname", "False"),
}  # fmt: skip
NEEDED = {  # call -> what it must say
    "torch.load": ("weights_only", "True"),
    "Environment": ("autoescape", "True"),
    "jinja2.Environment": ("autoescape", "True"),
}
ALLOWED = {  # (file, name) -> why it is harmless there
    (
        "regraft/testing.py",
        "pickle",
    ): "proves that a technique can be sent to another process; reads what it wrote itself",
    ("regraft/config/catalogue.py", "import_module"): "modules of the catalogue and of entry points, never of a file",
    (
        "regraft/data/safe_image.py",
        "Image.open",
    ): "the one place images are opened in; limits are checked in the header first",
    ("benchmarks/arms/common.py", "Image.open"): "reads the data of a benchmark as its peers do",
    ("docs/build_reference.py", "importlib.import_module"): "modules of the package, to write their pages",
    ("regraft/integrations/ray.py", "import_module"): "the package ray by its name, and the function its caller names",
    (
        "regraft/phases/lab/page.py",
        "Markup",
    ): "markup of its own, into which texts are put by `format`, which escapes them",
    ("regraft/phases/lab/registry.py", "import_module"): "demonstrations of the package, from a table",
    (
        "regraft/phases/report/contours.py",
        "Markup",
    ): "drawings into which texts are put by `format`, which escapes them",
    ("regraft/search/figures.py", "Markup"): "drawings into which texts are put by `format`, which escapes them",
    ("regraft/parallel/worker.py", "import_module"): "the function that is named when the process is started",
    ("regraft/phases/report/document.py", "Markup"): "templates and the style sheet of the package itself",
    ("regraft/phases/report/figures.py", "Markup"): "drawings whose texts were escaped when they were drawn",
}


def name_of(node: ast.expr) -> str:
    """`a.b.c` of an expression; `?.c` where what stands before it is not a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed([*parts, node.id if isinstance(node, ast.Name) else "?"]))


def own_names(tree: ast.AST) -> set[str]:
    """Functions that a file defines, or imports from the package: its own `compile` is not the built-in one."""
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("regraft", "arms", "harness"):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def real_names(tree: ast.AST) -> dict[str, str]:
    """What local names stand for: `np` for numpy, `load` for torch.load after `from torch import load`."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def findings(text: str, *, file: str = "") -> Iterator[tuple[str, int]]:
    """(what is refused, line) of a source text."""
    tree = ast.parse(text)
    own, real = own_names(tree), real_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                for module in MODULES:
                    if name == module or name.startswith(f"{module}."):
                        yield module, node.lineno
        if not isinstance(node, ast.Call):
            continue
        called = name_of(node.func)
        head, _, rest = called.partition(".")
        full = ".".join(part for part in (real.get(head, head), rest) if part)
        if full in CALLS or (called in CALLS and head not in own):
            yield called, node.lineno
        if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            yield node.func.attr, node.lineno
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for keyword, value in said.items():
            if (keyword, value) in KEYWORDS:
                yield f"{keyword}={value}", node.lineno
        wanted = NEEDED.get(full) or NEEDED.get(called)
        if wanted and said.get(wanted[0]) != wanted[1]:
            yield f"{called} without {wanted[0]}={wanted[1]}", node.lineno


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_uses_what_can_run_code_of_others(file):
    name = str(file.relative_to(ROOT))
    found = [
        f"{name}:{line}: {what}" for what, line in findings(file.read_text("utf-8")) if (name, what) not in ALLOWED
    ]
    assert found == []


def test_every_exception_of_the_gate_is_still_needed():
    used = {
        (str(file.relative_to(ROOT)), what) for file in FILES for what, _ in findings(file.read_text(encoding="utf-8"))
    }
    assert set(ALLOWED) <= used, f"take out {sorted(set(ALLOWED) - used)}"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import numpy as np\nnp.load(f, allow_pickle=True)", "eval('1')",
        "import torch\ntorch.load(f)", "import torch as t\nt.load(f)", "from torch import load\nload(f)",
        "import torch\ntorch.load(f, weights_only=False)", "import yaml\nyaml.load(f)",
        "from yaml import unsafe_load\nunsafe_load(f)",
        "import subprocess\nsubprocess.run('x', shell=True)", "import os\nos.system('x')", "from os import system\nsystem('x')",
        "Model.from_pretrained(x, trust_remote_code=True)", "import tempfile\ntempfile.mktemp()", "exec(code)",
        "import tarfile\ntarfile.open(f)", "archive.extractall(out)", "from jinja2 import Environment\nEnvironment()",
        "import joblib\njoblib.load(f)", "import requests\nrequests.get(u, verify=False)", "compile(text, '', 'exec')",
        "import importlib\nimportlib.import_module(name)", "__import__(name)",
    ],
)  # fmt: skip
def test_the_gate_sees_what_it_must(text):
    assert list(findings(text))


@pytest.mark.parametrize(
    "text",
    [
        "from regraft.core.compile import compile\ncompile(recipe, [])", "import numpy as np\nnp.load(f)", "model.eval()",
        "import torch\ntorch.load(f, map_location='cpu', weights_only=True)", "import yaml\nyaml.safe_load(f)", "re.compile('x')",
        "import subprocess\nsubprocess.run(['x'])",
    ],
)  # fmt: skip
def test_the_gate_lets_pass_what_is_harmless(text):
    assert not list(findings(text))
