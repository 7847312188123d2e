"""Secrets in a text: known by their form, by the name they stand beside, or as a value of the environment, and blotted out.

What regraft writes (recipe, manifest, events, ledger, metrics, audit, report, error messages) goes through `redact`. Names
of a model's parts, such as `cls_token`, `max_tokens` and `key_padding_mask`, are no names of secrets.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast
from urllib.parse import quote

BLOT = "[secret]"
SHORTEST = 8  # characters of an environment variable's value that is looked for

_START = r"(?<![A-Za-z0-9])"
_FORMS = (  # each is bounded, so that no text takes more than time proportional to its length
    r"hf_[A-Za-z0-9]{20,200}",
    r"api_org_[A-Za-z0-9]{20,200}",
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    r"gh[pousr]_[A-Za-z0-9]{30,255}",
    r"github_pat_[A-Za-z0-9_]{22,255}",
    r"glpat-[A-Za-z0-9_-]{20,255}",
    r"npm_[A-Za-z0-9]{36}",
    r"pypi-[A-Za-z0-9_-]{50,500}",
    r"xox[abeprs]-[A-Za-z0-9-]{10,255}",
    r"sk-(?:(?:proj|ant|svcacct|admin|or)-[A-Za-z0-9_-]{20,255}|[A-Za-z0-9]{20,255})",
    r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,255}",
    r"AIza[A-Za-z0-9_-]{35}",
    r"eyJ[A-Za-z0-9_-]{8,2000}\.[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{5,1000}",  # a JSON web token
)
_KEY_BLOCK = r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----.{0,8000}?-----END [A-Z ]{0,30}PRIVATE KEY-----"
_TOKEN_OWNERS = (
    "access|api|auth|bearer|csrf|gh|github|gitlab|hf|hub|id|oauth|personal|refresh|secret|security|session|slack"
)
_NAMES = (
    r"(?:pass(?:word|wd|phrase)|secret|api[_-]?key|access[_-]?key(?:[_-]?id)?|secret[_-]?key|private[_-]?key|account[_-]?key|"
    rf"credentials?|(?:{_TOKEN_OWNERS})[_-]token)"
)
_WORDS = (  # one of them is in each of the names
    "password", "passwd", "passphrase", "secret", "credential", "_token", "-token", "apikey", "api_key", "api-key",
    "accesskey", "access_key", "access-key", "privatekey", "private_key", "private-key",
    "accountkey", "account_key", "account-key",
)  # fmt: skip
_FORM = re.compile(f"{_START}(?:{'|'.join(_FORMS)})|{_KEY_BLOCK}", re.DOTALL)
_FORM_HINTS = (  # one of them is in every secret of these forms; looking for words is far quicker than for forms
    "hf_", "api_org_", "AKIA", "ASIA", "ABIA", "ACCA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_",
    "glpat-", "npm_", "pypi-", "xox", "sk-",
    "k_live_", "k_test_", "AIza", "eyJ", "PRIVATE KEY",
)  # fmt: skip
_VALUE = r"[^\s\"',;&)}\\]"
_QUERY = r"[\w-]{0,40}(?:token|signature|secret|password|api[_-]?key|credential)|sig|key"
_AROUND = (  # what the text must hold, and (before)(secret)(after): what stands around a secret stays
    (("://",), r"(://[^\s/@:\"'<>]{0,200}:)([^\s/@\"'<>]{1,300})(@)", re.I),  # https://user:password@host
    (("://",), r"(://)([^\s/@:\"'<>]{20,300})(@)", re.I),  # https://token@host
    (("authorization",), r"(\bauthorization\\?[\"']?\s?[:=]\s?\\?[\"']?(?:[a-z]{4,8}\s)?)([^\s\"',;}\\]{6,4000})()", re.I),
    (("bearer ", "basic "), r"(\b(?:bearer|basic)\s)((?=\S{0,200}\d)[A-Za-z0-9._~+/=-]{16,4000})()", re.I),
    (("=",), rf"([?&](?:{_QUERY})=)([^&\s\"'<>\\]{{4,4000}})()", re.I),
    (_WORDS, rf"({_NAMES}\s?=\s?\\?[\"']?)({_VALUE}{{4,4000}})()", re.I),  # password=... of a command, a call or a file
    (_WORDS, rf"({_NAMES}\\?[\"']\s?:\s?\\?[\"'])([^\"'\\]{{4,4000}})(\\?[\"'])", re.I),  # "password": "..."
    (_WORDS, rf"({_NAMES}:\s)((?=\S{{0,200}}\d)[\w.~+/=-]{{16,4000}})()", re.I),  # api_key: ... within a sentence
    (_WORDS, rf"(--?[\w-]{{0,40}}{_NAMES}\\?[\"']?,?\s\\?[\"']?)([^\s\"',-][^\s\"',\\]{{3,4000}})()", re.I),  # --password ...
    (_WORDS, rf"(^[ \t]{{0,80}}(?:- )?[\w-]{{0,40}}{_NAMES}:[ \t])([^\s\"'\[{{&*|>][^\s]{{3,4000}})($)", re.I | re.M),  # YAML
    (("TOKEN=", "SECRET=", "WORD=", "PASSWD=", "_KEY=", "_PAT="),
     r"(\b[A-Z0-9_]{0,60}(?:TOKEN|SECRET|PASSWORD|PASSWD|_KEY|_PAT)=\\?[\"']?)([^\s\"',;\\]{4,4000})()", 0),  # of a shell
    (("token",), r"(\btoken\\?[\"']?\s?[=:]\s?\\?[\"'])((?=\w{0,200}\d)[\w.-]{16,4000})(\\?[\"'])", re.I),
)  # fmt: skip
_PATTERNS = tuple((tuple(hint.lower() for hint in hints), re.compile(form, flags)) for hints, form, flags in _AROUND)
_OF_ENVIRONMENT = {"TOKEN", "TOKENS", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASS", "PASSPHRASE", "APIKEY", "KEY"} | {
    "PAT", "CREDENTIAL", "CREDENTIALS",
}  # fmt: skip


def redact(text: str) -> str:
    """The text with every secret replaced by `[secret]`; what stands around it stays.

    >>> redact("https://me:hunter2@example.com/data.csv")
    'https://me:[secret]@example.com/data.csv'
    """
    for value in environment_secrets():
        text = text.replace(value, BLOT)
    if any(hint in text for hint in _FORM_HINTS):
        text = _FORM.sub(BLOT, text)
    lowered = text.lower()
    for hints, pattern in _PATTERNS:
        if any(hint in lowered for hint in hints):
            text = pattern.sub(_blotted, text)
    return text


def _blotted(found: re.Match[str]) -> str:
    return found[0] if found[2] in (BLOT, "null", "None", "true", "false") else f"{found[1]}{BLOT}{found[3]}"


def environment_secrets() -> list[str]:
    """Values of environment variables that are called a token, key, secret or password, longest first, as texts hold them."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if not _OF_ENVIRONMENT & set(re.split(r"[_.-]", name.upper())) or len(value) < SHORTEST:
            continue
        if value.startswith(("/", "~", ".")) or (value.isalpha() and len(value) < 12):
            continue  # where a key lies, or a word that any text may hold
        found |= {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], quote(value, safe="")}
    return sorted(found, key=len, reverse=True)


def secret_fields(value: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of the texts in nested mappings and lists that `redact` would change."""
    if isinstance(value, str):
        if redact(value) != value:
            yield path or "a value"
    elif isinstance(value, Mapping):
        for key, item in cast(Mapping[Any, Any], value).items():
            yield from secret_fields(str(key), f"{path}.{redact(str(key))}" if path else redact(str(key)))
            yield from secret_fields(item, f"{path}.{redact(str(key))}" if path else redact(str(key)))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(cast(list[Any], value)):
            yield from secret_fields(item, f"{path}[{number}]")
