"""No secret reaches a file that a run writes, or an error that is told: 50 planted ones, and none of them is found."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from regraft.cli.errors import guarded
from regraft.config.recipe import parse_recipe
from regraft.config.secrets import redact
from regraft.errors import ConfigError, RunError
from regraft.phases.report.document import write_report
from regraft.phases.rundir import EventLog, RunDirectory

LETTERS = "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7"


def secret(prefix: str = "", length: int = 32, alphabet: str = LETTERS, *, number: count = count()) -> str:  # noqa: B008
    """A secret that no file could hold by chance, another one at each call."""
    digest = hashlib.sha512(str(next(number)).encode()).digest()
    return prefix + "".join(alphabet[digest[i % 64] % len(alphabet)] for i in range(length))


def planted() -> list[tuple[str, str]]:
    """(text that holds a secret, the secret)."""
    capital = "ABCDEFGHIJKLMNOP234567"
    plain = "abcdefghijklmnop"
    forms = [
        secret("hf_", 34), secret("hf_", 37), secret("api_org_", 34), secret("AKIA", 16, capital),
        secret("ASIA", 16, capital),
        secret("ghp_", 36), secret("gho_", 36), secret("ghs_", 36), secret("ghr_", 36),
        secret("github_pat_", 60),
        secret("glpat-", 20),
        secret("npm_", 36), secret("pypi-", 60), secret("xoxb-", 40), secret("xoxp-", 40), secret("sk-", 48),
        secret("sk-proj-", 60),
        secret("sk-ant-api03-", 60), secret("sk_live_", 24), secret("AIza", 35),
        f"eyJ{secret('', 20)}.eyJ{secret('', 30)}.{secret('', 43)}",
    ]  # fmt: skip
    found = [(f"could not fetch with {value} today", value) for value in forms]
    for text in (
        "https://me:{}@example.com/data.csv", "s3://key:{}@bucket/part", "postgres://user:{}@db:5432/x",
        "ftp://anonymous:{}@host/",
        "redis://:{}@cache:6379/0", "https://{}@github.com/me/repo.git",
        "Authorization: Bearer {}", "'Authorization': 'Basic {}'",
        '{{"authorization": "token {}"}}', "curl -H 'authorization: {}'", "https://x.example/y?X-Amz-Signature={}&a=1",
        "https://x.example/y?access_token={}", "https://x.example/?api_key={}", "login(token='{}')", "login(password=\"{}\")",
        "HF_TOKEN={} regraft adapt",
        "export AWS_SECRET_ACCESS_KEY={}", "DB_PASSWORD={}", "['regraft', '--hf-token', '{}']",
        "regraft adapt --password {} x.csv", "--api-key={}", '{{"password": "{}"}}', "{{'client_secret': '{}'}}",
        "aws_secret_access_key = {}",
        "hub_token: {}", "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
    ):  # fmt: skip
        value = secret("", 28)
        found.append((text.format(value), value))
    for number in range(3):  # of the environment, which the test sets
        found.append((f"asked the server with {plain}{number}-{LETTERS[:9]}", f"{plain}{number}-{LETTERS[:9]}"))
    return found


PLANTED = planted()
UNTOUCHED = (
    '"cls_token": "[CLS]"', '{"pad_token": "[PAD]", "eos_token": "</s>", "bos_token": "<s>"}', "max_tokens=512",
    "tokenizer: bert",
    "key_padding_mask=mask",
    '"num_key_value_heads": 4', '"tokenizer_class": "BertTokenizerFast"', "cls_token=[CLS]",
    "class_token: 3",
    '"mask_token": "<mask>", "mask_token_id": 103', '"token_type_ids": [0, 0, 1]',
    '"special_tokens_map": {}', "sep_token_id: 102",
    "unk_token='[UNK]'", '"add_prefix_space": false, "add_bos_token": true', "I forgot my password: how do I get a new one?",
    '{"class": "lost_password", "f1": 0.91}', "secret santa",
    "the key: a table", "sk-learn-experiments-2024", "num_tokens=1000000",
    "https://example.com:8080/a@b", "ssh://git@github.com/me/repo", '"keys": ["a", "b"]', "monkey=banana",
    "public_key_size=2048",
    '"sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"', "author: Key, T.", "token: '[CLS]'",
)  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    """Three secrets that only their place in the environment gives away."""
    for number, name in enumerate(("MY_SERVICE_TOKEN", "COMPANY_PASSWORD", "X_API_KEY")):
        monkeypatch.setenv(name, PLANTED[-3 + number][1])


def found_below(folder: Path) -> list[tuple[str, str]]:
    """(file, secret) of every planted secret in any file."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [(file.name, value) for file in files for _, value in PLANTED if value.encode() in file.read_bytes()]


def test_fifty_secrets_are_planted_and_each_is_blotted_out_with_the_rest_left(environment):
    assert len({value for _, value in PLANTED}) == 50
    for text, value in PLANTED:
        blotted = redact(f"before {text} after")
        assert value not in blotted, text
        assert blotted.startswith("before ")
        assert blotted.endswith(" after")
        assert redact(blotted) == blotted


def test_names_of_a_models_parts_and_ordinary_texts_are_left_as_they_are():
    assert [text for text in UNTOUCHED if redact(text) != text] == []
    joined = "\n".join(UNTOUCHED)
    assert redact(joined) == joined


def test_no_file_of_a_run_holds_a_planted_secret(tmp_path, environment):
    run = RunDirectory(tmp_path)
    texts = [text for text, _ in PLANTED]
    run.write_text("recipe.yaml", "reasons:\n" + "".join(f"- {json.dumps(text)}\n" for text in texts))
    finding = {"kind": "odd", "severity": "warning", "split": "train", "rows": texts[:3]}
    run.write_json("audit.json", {"findings": [finding | {"message": text} for text in texts], "facts": {}})
    run.write_json("manifest.json", {"data": {"name": "x", "path": texts}, "model": {"name": texts[0]}, "argv": texts})
    run.write_json("metrics.json", {"warnings": texts, "fallbacks": texts, "limits": texts, "reasons": texts})
    for text in texts:
        run.add_cost({"phase": text, "seconds": 1.0, "gate": {"passed": False, "sentence": text}})
    run.finish("audit", {"notes": texts, "nested": {"deep": [{"error": text} for text in texts]}})
    records = [{"stage": "adapt", "step": i, "note": text} for i, text in enumerate(texts)]
    EventLog(tmp_path / "events.jsonl", candidate="x").write(records)  # type: ignore[arg-type]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("# Model\n")
    write_report(tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert found_below(tmp_path) == []
    for name in ("audit", "manifest", "metrics", "ledger", "phases/audit"):
        run.read_json(f"{name}.json")  # what was blotted out has left JSON behind


def test_a_report_of_files_that_hold_secrets_holds_none(tmp_path, environment):
    (tmp_path / "recipe.yaml").write_text("\n".join(text for text, _ in PLANTED))
    (tmp_path / "metrics.json").write_text(json.dumps({"warnings": [text for text, _ in PLANTED]}))
    page = write_report(tmp_path).read_text()
    assert [value for _, value in PLANTED if value in page] == []


def test_a_recipe_with_a_secret_is_refused_in_a_sentence_without_it(environment):
    base = "data: {main: {path: wine}}\nmodels: {main: {}}\n"
    for text, value in PLANTED:
        with pytest.raises(ConfigError, match="holds a token, key or password") as caught:
            parse_recipe(f"{base}reasons: [{json.dumps(text)}]")
        assert "reasons[0]" in str(caught.value)
        assert value not in str(caught.value)
    for text in UNTOUCHED:
        parse_recipe(f"{base}reasons: [{json.dumps(text)}]")


def test_errors_and_tracebacks_are_told_without_secrets(environment, capsys):
    import typer

    for error in (RunError, RuntimeError):
        for text, value in PLANTED:

            def fail(text=text, error=error) -> None:
                raise error(text)

            with pytest.raises(typer.Exit):
                guarded(fail)()
            told = capsys.readouterr()
            assert value not in told.out + told.err
            assert "regraft: " in told.err


@pytest.mark.slow
def test_a_secret_in_a_models_configuration_does_not_reach_the_saved_model(tmp_path, monkeypatch):
    import torch
    from transformers import BertConfig, BertModel

    from regraft.models.graft import Graft
    from regraft.models.load import load_backbone
    from regraft.models.save import save_model

    value = PLANTED[0][1]
    size = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 20,
    }
    torch.manual_seed(0)
    BertModel(BertConfig(**size, max_position_embeddings=16)).save_pretrained(tmp_path / "source")
    config = json.loads((tmp_path / "source" / "config.json").read_text()) | {
        "note": value,
        "dataset": f"https://me:{value}@x.example/",
    }
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    (tmp_path / "source" / "tokenizer_config.json").write_text(
        json.dumps({"use_auth_token": value, "cls_token": "[CLS]"})
    )
    graft = Graft(load_backbone(str(tmp_path / "source"), modality="text"), depths=(1,), pools=("mean",), num_outputs=2)
    save_model(graft, tmp_path / "saved", preprocessor_json={}, labels=["a", "b"], task="binary")
    assert found_below(tmp_path / "saved") == []
    assert json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())["cls_token"] == "[CLS]"


@pytest.mark.slow
def test_a_whole_run_with_secrets_in_its_environment_and_arguments_leaves_none_behind(tmp_path):
    hidden = {f"SERVICE_{number}_TOKEN": value for number, (_, value) in enumerate(PLANTED)}
    environment = os.environ | hidden | {"REGRAFT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    run = [
        sys.executable,
        "-m",
        "regraft",
        "adapt",
        "wine",
        "--out",
        str(tmp_path / "run"),
        "--budget",
        "5s",
    ]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    refused = subprocess.run(
        [*run[:3], "adapt", PLANTED[21][0], "--out", str(tmp_path / "other"), "--debug"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert refused.returncode == 2
    assert [value for _, value in PLANTED if value in done.stderr + refused.stderr] == []
    assert found_below(tmp_path / "run") == []
    assert found_below(tmp_path / "cache") == []
