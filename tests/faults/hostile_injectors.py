"""Hostile files: pickles that run code, configurations that ask for it, headers, YAML, links and JSON that are not what they say.

`CASES` maps a name to a function that writes the file into a folder and returns how to open it. Opening must end in an error
of regraft. A gadget that ran would make the file `canary` in the folder that `CANARY` names.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from regraft.config.data import DataSpec
from regraft.config.recipe import read_recipe
from regraft.core.checkpoint import load as load_checkpoint
from regraft.data.read import load as load_data
from regraft.models.load import checked_model, load_backbone
from regraft.models.save import load_model
from regraft.phases.rundir import RunDirectory

Open = Callable[[], object]
CASES: dict[str, Callable[[Path], Open]] = {}
BERT = {
    "model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "vocab_size": 20, "max_position_embeddings": 16,
}  # fmt: skip
PREFIX = "tag:yaml.org,2002:"


def command() -> str:
    return f"touch {os.environ['REGRAFT_CANARY']}"


class Gadget:
    """Pickles as a call of `function`."""

    def __init__(self, function: str, *arguments: object) -> None:
        module, _, name = function.rpartition(".")
        self.function, self.arguments = getattr(__import__(module, fromlist=[name]), name), arguments

    def __reduce__(self):
        return self.function, self.arguments


def gadgets() -> dict[str, Gadget]:
    canary = os.environ["REGRAFT_CANARY"]
    return {
        "system": Gadget("os.system", command()),
        "popen": Gadget("subprocess.Popen", ["touch", canary]),
        "eval": Gadget("builtins.eval", f"open({canary!r}, 'w').close()"),
        "exec": Gadget("builtins.exec", f"open({canary!r}, 'w').close()"),
        "open": Gadget("builtins.open", canary, "w"),
        "connect": Gadget("socket.create_connection", ("127.0.0.1", 9)),
        "import": Gadget("importlib.import_module", "antigravity"),
        "getattr": Gadget("builtins.getattr", "text", "upper"),
        "chmod": Gadget("os.chmod", canary, 0o777),
        "torch-load": Gadget("torch.load", canary),
    }


# ---- model folders


def model_folder(folder: Path, config: object = BERT, *, weights: bool = True) -> Path:
    made = folder / "model"
    made.mkdir()
    (made / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if weights:
        save_file({"w": torch.zeros(2)}, made / "model.safetensors")
    return made


def opens(folder: Path, *, pickled: bool = False) -> Open:
    return lambda: load_backbone(str(folder), modality="text", allow_pickled_weights=pickled)


def archive(content: bytes, *, compression: int = zipfile.ZIP_STORED, name: str = "archive/data.pkl") -> bytes:
    """A zip archive as torch.save writes it, around any pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as zipped:
        zipped.writestr(name, content)
        zipped.writestr("archive/version", "3\n")
        zipped.writestr("archive/byteorder", "little")
    return out.getvalue()


def weights_case(
    label: str, content: Callable[[], bytes], name: str = "pytorch_model.bin", *, pickled: bool = True
) -> None:
    def build(folder: Path) -> Open:
        made = model_folder(folder, weights=False)
        (made / name).write_bytes(content())
        return opens(made, pickled=pickled)

    CASES[f"weights {label}"] = build


for kind in ("system", "popen", "eval", "exec", "open", "connect", "import", "getattr", "chmod", "torch-load"):
    weights_case(f"raw pickle of {kind}, not allowed", lambda kind=kind: pickle.dumps(gadgets()[kind]), pickled=False)
    weights_case(f"raw pickle of {kind}, allowed", lambda kind=kind: pickle.dumps(gadgets()[kind]), "weights.pt")
    for protocol in (2, 4):
        weights_case(
            f"archive of {kind}, protocol {protocol}",
            lambda kind=kind, protocol=protocol: archive(pickle.dumps({"w": gadgets()[kind]}, protocol=protocol)),
            "model.pth",
        )
for suffix in (".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".th"):
    weights_case(f"only as {suffix}", lambda: pickle.dumps(gadgets()["system"]), f"model{suffix}")


def saved(content: object) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def expanded() -> bytes:
    """A tensor of 10^12 numbers over a storage of one."""
    return saved({"w": torch.zeros(1).expand(10**6, 10**6)})


weights_case("stride bomb", expanded)
weights_case("compressed bomb", lambda: archive(b"\x00" * 300_000_000, compression=zipfile.ZIP_DEFLATED))
weights_case("compressed archive", lambda: archive(pickle.dumps({}), compression=zipfile.ZIP_DEFLATED))
weights_case("a list", lambda: saved([torch.zeros(2)]))
weights_case("a number", lambda: saved(7))
weights_case("nothing", lambda: saved({}))
weights_case("a number as name", lambda: saved({1: torch.zeros(2)}))
weights_case("text as tensor", lambda: saved({"w": "x"}))
weights_case("sparse tensor", lambda: saved({"w": torch.eye(3).to_sparse()}))
weights_case("a whole module", lambda: saved(torch.nn.Linear(2, 2)))
weights_case("cut off", lambda: saved({"w": torch.zeros(100)})[:-200])
weights_case("empty", lambda: b"")
weights_case("text", lambda: b"not weights")
weights_case("two pickles", lambda: pickle.dumps({}) * 2)
weights_case("long memo", lambda: archive(b"\x80\x02" + b"]q\x00" * 50_000 + b"."))
weights_case("deep pickle", lambda: archive(b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."))
weights_case("huge bytes opcode", lambda: archive(b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"."))


def config_case(label: str, config: object, name: str = "config.json", *, base: object = BERT) -> None:
    def build(folder: Path) -> Open:
        if name == "config.json":
            return opens(model_folder(folder, config))
        made = model_folder(folder, base)
        (made / name).write_text(config if isinstance(config, str) else json.dumps(config))
        return opens(made)

    CASES[f"{name} {label}"] = build


REMOTE = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
HUB = "evil/kernel:run"
for label, change in {
    "auto_map": {"auto_map": REMOTE},
    "auto_map of a hub": {"auto_map": {"AutoModel": "evil/repo--modeling.Model"}},
    "auto_map in a nested config": {"text_config": {"model_type": "bert", "auto_map": REMOTE}},
    "auto_map in a list": {"layers": [{"auto_map": REMOTE}]},
    "trust_remote_code": {"trust_remote_code": True},
    "CVE-2026-5241, the switch in a nested config": {
        "model_type": "lightglue",
        "keypoint_detector_config": {
            "model_type": "superpoint",
            "trust_remote_code": True,
            "_name_or_path": "evil/repo",
        },
    },
    "CVE-2026-5241, the switch on top": {"model_type": "lightglue", "trust_remote_code": True},
    "CVE-2026-4372": {"_attn_implementation_internal": "evil/kernel"},
    "CVE-2026-4372 with a function": {"_attn_implementation_internal": HUB},
    "CVE-2026-4372 by part": {"_attn_implementation_internal": {"": "eager", "text_config": HUB}},
    "attention of a hub": {"_attn_implementation": "kernels-community/flash-attn"},
    "attention of a hub, paged": {"attn_implementation": f"paged|{HUB}"},
    "attention as a list": {"attn_implementation": ["eager", HUB]},
    "attention nested": {"text_config": {"_attn_implementation": HUB}},
    "attention with its version": {"attn_implementation": "evil/kernel@main"},
    "attention that is true": {"attn_implementation": True},
    "attention by address": {"_attn_implementation_autoset": "http://127.0.0.1:9/kernel"},
    "experts of a hub": {"_experts_implementation": HUB},
    "experts of a hub, inside": {"_experts_implementation_internal": HUB},
    "kernels": {"use_kernels": True},
    "kernel map": {"kernel_config": {"kernel_mapping": {"RMSNorm": HUB}}},
    "quantiser": {"quantization_config": {"quant_method": "hqq"}},
    "quantiser of its own": {"quantization_config": {"quant_method": "evil", "modules_to_not_convert": [HUB]}},
    "quantiser nested": {"text_config": {"quantization_config": {"quant_method": "gptq"}}},
    "_target_": {"_target_": "os.system"},
    "_target_ nested": {"head": {"_target_": "subprocess.Popen", "args": ["touch", "x"]}},
    "py/object": {"py/object": "os.system"},
    "custom pipelines": {"custom_pipelines": {"x": {"impl": "evil.Pipeline"}}},
    "custom generation": {"custom_generate": "evil/repo"},
    "other weights": {"transformers_weights": "pytorch_model.bin"},
    "other weights elsewhere": {"transformers_weights": "../../evil.bin"},
    "pretrained backbone": {"backbone": "evil/repo", "use_pretrained_backbone": True},
    "dtype that is a function": {"dtype": "load"},
    "dtype that is a module": {"torch_dtype": "hub"},
    "unknown type": {"model_type": "evil"},
    "type that is a list": {"model_type": ["bert"]},
    "type that is a path": {"model_type": "../bert"},
    "no type": {"model_type": None},
    "no type, but one in the name": {"model_type": "", "architectures": ["BertModel"]},
    "hidden size 10^9": {"hidden_size": 10**9},
    "hidden size that is text": {"hidden_size": "8"},
    "hidden size below zero": {"hidden_size": -8},
    "no heads": {"num_attention_heads": 0},
    "layers 10^6": {"num_hidden_layers": 10**6},
    "layers 2,000": {"num_hidden_layers": 2000},
    "vocabulary 10^12": {"vocab_size": 10**12},
    "vocabulary of 4 GB": {"vocab_size": 2**25, "hidden_size": 32},
    "positions 10^10": {"max_position_embeddings": 10**10},
    "labels 10^9": {"num_labels": 10**9},
    "feed-forward 10^9": {"intermediate_size": 10**9},
    "a number of 4,000 digits": {"pad_token_id": 10**3999},
    "token types 10^9": {"type_vocab_size": 10**9},
    "default sizes of a large model": {"model_type": "mixtral", "hidden_size": 4096, "vocab_size": 32000},
    "long text": {"hidden_act": "x" * 200_000},
    "activation that does not exist": {"hidden_act": "os.system"},
    "floats where numbers of things belong": {"hidden_size": 8.5},
    "a list for a number": {"hidden_size": [8] * 1000},
    "a mapping for a number": {"num_attention_heads": {"a": 1}},
    "types of position that do not exist": {"hidden_size": 7},
}.items():
    config_case(label, BERT | change)
for label, text in {
    "not JSON": "{", "empty": "", "a list": "[]", "a word": "bert", "binary": "\x00\x01\x02",
    "100,000 levels": '{"a":' * 100_000 + "1" + "}" * 100_000, "100,000 lists": "[" * 100_000,
    "a key twice": '{"model_type": "bert", "model_type": "evil"}',
    "auto_map twice": '{"model_type": "bert", "auto_map": {}, "auto_map": {"AutoModel": "evil.Model"}}',
    "a number of 10^6 digits": '{"model_type": "bert", "hidden_size": ' + "9" * 1_000_000 + "}",
    "NaN as a size": '{"model_type": "bert", "hidden_size": NaN}',
    "infinite": '{"model_type": "bert", "hidden_size": Infinity}',
    "33 MiB": '{"model_type": "bert", "x": "' + "x" * (33 * 2**20) + '"}',
    "300,000 keys twice": '{"model_type": "bert",' + ",".join(f'"k{i % 150_000}": 1' for i in range(300_000)) + "}",
    "UTF-16": '{"model_type": "bert"}'.encode("utf-16").decode("latin-1"),
    "a comment": '{"model_type": "bert" /* , */}',
}.items():  # fmt: skip
    config_case(label, text)
for label, change in {
    "auto_map": {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}},
    "a class by path": {"tokenizer_class": "evil.module.Tokenizer"},
    "a class that is a list": {"tokenizer_class": ["a", "b"]},
    "a vocabulary elsewhere": {"vocab_file": "/etc/passwd"},
    "a tokenizer elsewhere": {"tokenizer_file": "/etc/hostname"},
    "files above the folder": {"fast_tokenizer_files": ["../../tokenizer.json"]},
    "remote code": {"trust_remote_code": True},
    "_target_": {"backend": {"_target_": "os.system"}},
}.items():
    config_case(label, change, "tokenizer_config.json")
config_case("not JSON", "{", "tokenizer_config.json")
config_case("deep", "[" * 100_000, "special_tokens_map.json")
config_case("_target_", {"cls_token": {"_target_": "os.system"}}, "special_tokens_map.json")
config_case("a list", "[1]", "added_tokens.json")
config_case("an adapter", {"base_model_name_or_path": "evil/repo", "auto_mapping": REMOTE}, "adapter_config.json")


# ---- safetensors


def written(header: object, room: int = 0, *, length: int | None = None, raw: bytes | None = None) -> bytes:
    """The bytes of a safetensors file with this header, or any bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return raw if raw is not None else struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * room


def header_case(label: str, content: Callable[[], bytes]) -> None:
    def build(folder: Path) -> Open:
        made = model_folder(folder, weights=False)
        (made / "model.safetensors").write_bytes(content())
        return opens(made)

    CASES[f"safetensors {label}"] = build


def tensor(shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


for label, content in {
    "empty file": lambda: written(b"", raw=b""),
    "seven bytes": lambda: written(b"", raw=b"\x07" * 7),
    "header of 2^63": lambda: written(b"{}", length=2**63),
    "header of 2^64 - 1": lambda: written(b"{}", length=2**64 - 1),
    "header longer than the file": lambda: written(b"{}", length=100),
    "header of 100 MB": lambda: written(b'{"a":"' + b"x" * 100_000_000 + b'"}'),
    "header of 0 bytes": lambda: written(b""),
    "no JSON": lambda: written(b"{]"),
    "a list": lambda: written(b"[]"),
    "not UTF-8": lambda: written(b'{"\xff\xfe": 1}'),
    "100,000 tensors": lambda: written({f"t{i}": tensor([0], [0, 0]) for i in range(100_000)}),
    "2 million lists": lambda: written(b'{"a":[' + b"[]," * 2_000_000 + b"[]]}"),
    "deep": lambda: written(b'{"a":' * 1000 + b"1" + b"}" * 1000),
    "a key twice": lambda: written(b"{" + b",".join([b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'] * 2) + b"}", room=1),
    "NaN as offset": lambda: written(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[NaN,1]}}', room=1),
    "infinite offset": lambda: written(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,Infinity]}}', room=1),
    "1e400 as offset": lambda: written(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1e400]}}', room=1),
    "negative offset": lambda: written({"a": tensor([2], [-8, 0])}, room=8),
    "offsets the wrong way": lambda: written({"a": tensor([2], [8, 0])}, room=8),
    "offset behind the file": lambda: written({"a": tensor([2], [0, 8])}),
    "offset of 2^62": lambda: written({"a": tensor([2], [2**62, 2**62 + 8])}, room=8),
    "three offsets": lambda: written({"a": tensor([2], [0, 8, 16])}, room=16),
    "offsets as text": lambda: written({"a": tensor([2], ["0", "8"])}, room=8),
    "offsets as floats": lambda: written({"a": tensor([2], [0.0, 8.0])}, room=8),
    "offsets true": lambda: written({"a": tensor([1], [False, True], "U8")}, room=1),
    "no offsets": lambda: written({"a": {"dtype": "F32", "shape": [2]}}, room=8),
    "overlap": lambda: written({"a": tensor([2], [0, 8]), "b": tensor([2], [4, 12])}, room=12),
    "the same bytes twice": lambda: written({"a": tensor(), "b": tensor()}, room=8),
    "a hole": lambda: written({"a": tensor(), "b": tensor([2], [16, 24])}, room=24),
    "bytes behind the last": lambda: written({"a": tensor()}, room=100),
    "fewer bytes": lambda: written({"a": tensor()}, room=4),
    "shape that overflows": lambda: written({"a": tensor([2**32, 2**32, 2], [0, 8])}, room=8),
    "shape too large": lambda: written({"a": tensor([10**15], [0, 8])}, room=8),
    "shape too small": lambda: written({"a": tensor([1], [0, 8])}, room=8),
    "negative shape": lambda: written({"a": tensor([-2, -1], [0, 8])}, room=8),
    "shape with floats": lambda: written({"a": tensor([2.0], [0, 8])}, room=8),
    "shape of 1,000 dimensions": lambda: written({"a": tensor([1] * 1000, [0, 4])}, room=4),
    "shape as text": lambda: written({"a": tensor("2", [0, 8])}, room=8),
    "shape null": lambda: written({"a": tensor(None, [0, 8])}, room=8),
    "type that does not exist": lambda: written({"a": tensor(dtype="PICKLE")}, room=8),
    "type as list": lambda: written({"a": tensor(dtype=["F32"])}, room=8),
    "type too small": lambda: written({"a": tensor(dtype="U8")}, room=8),
    "metadata that is a list": lambda: written({"__metadata__": [1], "a": tensor()}, room=8),
    "metadata with numbers": lambda: written({"__metadata__": {"a": 1}, "a": tensor()}, room=8),
    "an entry more": lambda: written({"a": tensor() | {"code": "evil"}}, room=8),
    "an entry that is a number": lambda: written({"a": 7}),
    "a pickle inside": lambda: written(b"\x80\x04cos\nsystem\n."),
    "spaces before": lambda: written(b"   {}"),
}.items():  # fmt: skip
    header_case(label, content)


def index_case(label: str, names: object) -> None:
    def build(folder: Path) -> Open:
        made = model_folder(folder, weights=False)
        save_file({"w": torch.zeros(2)}, folder / "elsewhere.safetensors")
        (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        return opens(made)

    CASES[f"index {label}"] = build


for label, names in {
    "above": {"w": "../elsewhere.safetensors"}, "absolute": {"w": "/tmp/x.safetensors"}, "a pickle": {"w": "pytorch_model.bin"},
    "missing": {"w": "no.safetensors"}, "a number": {"w": 7}, "a list": ["x"], "nothing": {}, "text": "model.safetensors",
    "a folder": {"w": "."},
}.items():  # fmt: skip
    index_case(label, names)


# ---- links and things that are no files


def link_case(label: str, name: str, target: Callable[[Path], str]) -> None:
    def build(folder: Path) -> Open:
        made = model_folder(folder)
        (made / name).unlink(missing_ok=True)
        (made / name).symlink_to(target(folder))
        return opens(made)

    CASES[f"link {label}"] = build


link_case("config to the machine's users", "config.json", lambda folder: "/etc/passwd")
link_case("config to an endless file", "config.json", lambda folder: "/dev/zero")
link_case("config to itself", "config.json", lambda folder: "config.json")
link_case("config to nothing", "config.json", lambda folder: "/nowhere")
link_case("weights to an endless file", "model.safetensors", lambda folder: "/dev/zero")
link_case("weights to a process", "model.safetensors", lambda folder: "/proc/self/mem")
link_case("tokenizer to the machine's users", "tokenizer.json", lambda folder: "/etc/passwd")
link_case("vocabulary to the machine's users", "vocab.txt", lambda folder: "/etc/passwd")
link_case("merges to a secret", "merges.txt", lambda folder: str(folder / ".." / "secret"))
link_case("README to the machine's users", "README.md", lambda folder: "/etc/passwd")
link_case("a folder to the root", "more", lambda folder: "/")


def pipe(folder: Path) -> Open:
    made = model_folder(folder)
    (made / "config.json").unlink()
    os.mkfifo(made / "config.json")
    return opens(made)


def listening_socket(folder: Path) -> Open:
    made = model_folder(folder, weights=False)
    here = os.getcwd()
    os.chdir(made)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("model.safetensors")
    os.chdir(here)
    return opens(made)


def config_folder(folder: Path) -> Open:
    made = model_folder(folder)
    (made / "config.json").unlink()
    (made / "config.json").mkdir()
    return opens(made)


CASES |= {"pipe as config": pipe, "socket as weights": listening_socket, "folder as config": config_folder}


# ---- recipes


def recipe_case(label: str, text: str) -> None:
    def build(folder: Path) -> Open:
        file = folder / "recipe.yaml"
        file.write_text(text.replace("COMMAND", command()), encoding="utf-8", errors="surrogateescape")
        return lambda: read_recipe(file)

    CASES[f"recipe {label}"] = build


GOOD = "data: {main: {path: wine}}\nmodels: {main: {}}\n"
for tag in (
    "!!python/object/apply:os.system ['COMMAND']", "!!python/object/new:os.system ['COMMAND']", "!!python/name:os.system",
    "!!python/module:subprocess", "!!python/object:subprocess.Popen {args: COMMAND}", "!!python/tuple [1, 2]",
    "!!python/object/apply:eval ['1']", "!!python/bytes aGk=", "!SAM {rho: 1}", "!!binary aGk=", "!!set {a, b}",
    "!!omap [a: 1]", "!!timestamp 2001-01-01", "!<tag:evil,2026:x> y", "!!java.lang.ProcessBuilder [[touch, x]]",
    "!!pairs [a: 1]",
):  # fmt: skip
    recipe_case(f"tag {tag.split()[0]}", f"{GOOD}seed: {tag}\n")
    recipe_case(f"tag {tag.split()[0]} as a key", f"{GOOD}? {tag}\n: 1\n")
for label, text in {
    "billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "billion merges": "a: &a {x: 1}\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{','.join(['*' + chr(97 + i)] * 9)}]}}\n" for i in range(9)),
    "alias of itself": "a: &a [*a]", "alias of itself as a mapping": "a: &a {b: *a}", "unknown alias": "a: *b",
    "100,000 lists": "[" * 100_000, "100,000 dashes": "- " * 100_000, "100,000 mappings": "{a: " * 60_000,
    "200 levels": "\n".join(" " * i + "a:" for i in range(200)), "a megabyte": "a: " + "x" * 1_000_000,
    "100,000 values": "a: [" + "1," * 100_000 + "]", "a key twice": GOOD + "seed: 1\nseed: 2\n",
    "a number of 5,000 digits": GOOD + "seed: " + "9" * 5000, "a sexagesimal bomb": GOOD + "seed: 1" + ":1" * 100_000,
    "a date that is none": GOOD + "seed: 2026-99-99", "not a number": GOOD + "budget_s: .nan",
    "infinite": GOOD + "budget_s: .inf",
    "a list as key": "? [1, 2]\n: 3", "a number as key": GOOD + "1: 2", "null as key": GOOD + "~: 2",
    "two documents": GOOD + "---\n" + GOOD, "directive": "%YAML 9.9\n---\n" + GOOD, "tab": "a:\n\t- b", "nothing": "",
    "a word": "wine", "a NUL": "a: \x00", "not UTF-8": "a: \udcff",
    "a module to import": GOOD + "techniques: [{module: os.system}]",
    "a class by path": GOOD + "techniques: [os.system]",
    "a class by path with options": GOOD + "techniques: [{subprocess.Popen: {args: x}}]",
    "an import": GOOD + "import: [os]", "an environment variable": GOOD + "seed: ${HOME}",
    "an include": GOOD + "include: /etc/passwd",
    "an optimizer by path": GOOD + "train: {optimizer: torch.hub.load}", "a dunder": GOOD + "__class__: x",
    "a file as a network": GOOD.replace("{main: {}}", "{main: {network: evil.py}}"),
    "a token": GOOD + f"reasons: [hf_{'a1B2' * 8}]", "a password": GOOD.replace("wine", "https://me:hunter2@example.com/x.csv"),
}.items():  # fmt: skip
    recipe_case(label, text)


# ---- run directories, checkpoints, data


def phase_case(label: str, text: str) -> None:
    def build(folder: Path) -> Open:
        (folder / "run" / "phases").mkdir(parents=True)
        (folder / "run" / "recipe.yaml").write_text(GOOD)
        (folder / "run" / "phases" / "audit.json").write_text(text)
        return lambda: RunDirectory.open(folder / "run").read_json("phases/audit.json")

    CASES[f"phase {label}"] = build


for label, text in {
    "deep": "[" * 100_000, "NaN": '{"a": NaN}', "1e999": '{"a": 1e999}', "a key twice": '{"a": 1, "a": 2}', "cut off": '{"a": ',
    "a number of 5,000 digits": '{"a": ' + "1" * 5000 + "}", "empty": "",
}.items():  # fmt: skip
    phase_case(label, text)


def checkpoint_case(label: str, change: Callable[[Path], object]) -> None:
    def build(folder: Path) -> Open:
        made = folder / "step-00000001"
        made.mkdir()
        change(made)
        return lambda: load_checkpoint(made)

    CASES[f"checkpoint {label}"] = build


def manifest(made: Path, text: str) -> None:
    (made / "manifest.json").write_text(text)


checkpoint_case("nothing", lambda made: None)
checkpoint_case("a pickle", lambda made: (made / "manifest.json").write_bytes(pickle.dumps(gadgets()["system"])))
checkpoint_case("numbers", lambda made: manifest(made, "7"))
checkpoint_case("files above", lambda made: manifest(made, json.dumps({"sha256": {"../../x": "0"}})))
checkpoint_case("a folder as manifest", lambda made: (made / "manifest.json").mkdir())
checkpoint_case("a list", lambda made: manifest(made, "[]"))


def saved_model(label: str, text: str) -> None:
    def build(folder: Path) -> Open:
        made = model_folder(folder)
        (made / "model.json").write_text(text)
        return lambda: load_model(made)

    CASES[f"model.json {label}"] = build


for label, text in {
    "nothing": "{}", "another format": '{"format": 99}', "no kind": '{"format": 1}', "deep": "[" * 50_000,
    "a kind that does not exist": '{"format": 1, "kind": "os.system", "base": "evil"}',
    "a network that does not exist": '{"format": 1, "kind": "module", "base": "network", "inputs": ["x"]}',
}.items():  # fmt: skip
    saved_model(label, text)


def data_case(label: str, name: str, content: Callable[[], bytes]) -> None:
    def build(folder: Path) -> Open:
        (folder / name).write_bytes(content())
        return lambda: load_data(DataSpec(path=str(folder / name)))

    CASES[f"data {label}"] = build


def object_array() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([gadgets()["system"], 1], dtype=object), allow_pickle=True)
    return out.getvalue()


data_case("a pickle", "data.pkl", lambda: pickle.dumps(gadgets()["system"]))
data_case("an array of objects", "data.npy", object_array)
data_case("a pickle called Parquet", "data.parquet", lambda: pickle.dumps(gadgets()["popen"]))
data_case("weights", "data.pt", lambda: archive(pickle.dumps(gadgets()["eval"])))


def unchecked(folder: Path) -> Open:
    """A folder name with a model type in it, and no configuration at all."""
    made = folder / "bert-base"
    made.mkdir()
    (made / "modeling_evil.py").write_text("import os; os.system('true')")
    return lambda: checked_model(str(made))


CASES["code and no config"] = unchecked
