"""Whether a provider's error text shows a credential: the relay's own key or anything that looks like one. Pure.

Providers print keys whole, masked (`sk-abcde****wxyz`), inside escaped JSON of another provider's error, or as part of
an address. The text is therefore read as it is and with its escapes undone, a few times over, and each reading is
searched. Every step is linear in the text, which is bounded. A provider that hides the key on purpose is not covered:
it has the key already, and could send it anywhere.
"""

from __future__ import annotations

import html
import re
import unicodedata
from base64 import b64encode
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

MAX_BYTES: Final = 64 * 1024
"""Of an error that is searched. Providers' errors have a few hundred bytes."""

MAX_READINGS: Final = 5
MIN_PART: Final = 10
"""Consecutive characters of the key that count as showing it."""

MIN_SPLIT: Final = 16
"""The same in a text without blanks and punctuation, for a key that is split by them."""

MIN_MASKED: Final = 3
"""First or last characters of the key beside a mask that count as showing it."""

MIN_SECRET: Final = 8
"""A shorter key is the placeholder of a server that needs none (`none`, `ollama`), and an ordinary word."""

_ESCAPE: Final = re.compile(r'\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|([/"\\]))')
_INVISIBLE: Final = re.compile("[\u00ad\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufeff]")
_PUNCTUATION: Final = re.compile(r"[\W_]+")
_MASK: Final = re.compile(
    r"[*•●·∙█■#]{2,}|\.{2,}|…|[xX]{3,}|_{3,}|-{3,}|[\[(<{](?:redacted|masked|hidden|filtered)", re.I
)
_MASK_BEFORE: Final = re.compile(
    r"(?:[*•●·∙█■#]{2}|\.{2}|…|[xX]{3}|_{3}|-{3}|(?:redacted|masked|hidden|filtered)[\])>}])\Z", re.I
)
_VENDOR: Final = re.compile(
    r"(?:sk|pk|gsk|xai|AIza|hf|pplx|nvapi)[-_]?(?:(?:proj|svcacct|admin|ant|or|v1|api\d\d)[-_])*"
)
"""The beginning that all keys of a vendor share, which shows nothing."""

_DIGIT_OR_MASK: Final = r"(?=[A-Za-z_.~+/=-]{0,200}[0-9*…•])"
_LOOKS_LIKE_ONE: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    rf"sk-{_DIGIT_OR_MASK}[A-Za-z0-9_-]{{16,}}"
    r"|(?:sk|gsk|xai)[-_][A-Za-z0-9_-]{0,60}(?:[*•]{2,}|\.{3}|…|[xX]{4,})"
    r"|AIza[0-9A-Za-z_-]{0,60}(?:[*•]{2,}|\.{3}|…)"
    r"|AIza[0-9A-Za-z_-]{20,}"
    r"|(?:gsk_|xai-|hf_|pplx-|csk-|nvapi-|tgp_v1_|ghp_|github_pat_|mk_)[A-Za-z0-9_-]{16,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|ya29\.[A-Za-z0-9_-]{16,}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"
    rf"|[Bb]earer[ \t]+{_DIGIT_OR_MASK}[A-Za-z0-9._~+/=*…•-]{{8,}}"
    rf"|[Bb]asic[ \t]+{_DIGIT_OR_MASK}[A-Za-z0-9+/=*…•]{{16,}}"
    r"""|(?:[Aa][Pp][Ii][-_ ]?[Kk]ey|API[-_ ]?KEY|[Aa]ccess[-_]?[Tt]oken|[Cc]lient[-_]?[Ss]ecret|[Aa]uthorization)"""
    rf"""["']?(?: [a-z]{{2,12}})?[ \t]{{0,3}}[:=][ \t]{{0,3}}["'`]?{_DIGIT_OR_MASK}[A-Za-z0-9_.~+/=*…•-]{{8,}}"""
    r"|(?<=[?&])key=[A-Za-z0-9_-]{16,}"
    r")"
)


def shows_credential(text: bytes, secret: str) -> bool:
    """Whether an error's text shows `secret`, the relay's own key, or another credential, in whole or in part.

    A longer text than `MAX_BYTES` counts as showing one, because the rest of it is not searched.
    """
    if len(text) > MAX_BYTES:
        return True
    own = _OwnKey(secret)
    return any(own.is_in(reading) or _LOOKS_LIKE_ONE.search(reading) for reading in _readings(text))


def _readings(text: bytes) -> Iterator[str]:
    """The text, then with one level of escapes undone after the other."""
    reading = text.decode("utf-8", "replace")
    for _ in range(MAX_READINGS):
        yield reading
        before = reading
        if "\\" in reading:
            reading = _ESCAPE.sub(_unescaped, reading)
        if "%" in reading:
            reading = unquote(reading, errors="replace")
        if "&" in reading:
            reading = html.unescape(reading)
        if not reading.isascii():  # soft hyphens, and letters of other widths
            reading = _INVISIBLE.sub("", unicodedata.normalize("NFKC", reading))
        if reading == before:
            return


def _unescaped(match: re.Match[str]) -> str:
    code = match[1] or match[2]
    return chr(int(code, 16)) if code else match[3]


class _OwnKey:
    """Recognises one key in a text."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        begins = _VENDOR.match(secret)
        shared = begins.end() if begins and len(secret) - begins.end() >= MIN_SECRET else 0
        self._parts = [secret[at : at + MIN_PART] for at in range(max(0, shared - 2), len(secret) - MIN_PART + 1)]
        bare = _PUNCTUATION.sub("", secret)
        self._split_parts = [bare[at : at + MIN_SPLIT] for at in range(len(bare) - MIN_SPLIT + 1)]
        self._encoded = _base64_cores(secret)
        self._hex = secret.encode().hex()

    def is_in(self, text: str) -> bool:
        secret = self._secret
        if len(secret) < MIN_SECRET:
            return bool(secret) and re.search(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])", text) is not None
        if secret in text or secret.lower() in text.lower() or any(part in text for part in self._parts):
            return True
        bare = _PUNCTUATION.sub("", text)
        if any(part in bare for part in self._split_parts):
            return True
        standard = text.replace("-", "+").replace("_", "/")  # base64url
        if any(core in standard for core in self._encoded) or self._hex in text.lower():
            return True
        return self._is_masked_in(text)

    def _is_masked_in(self, text: str) -> bool:
        secret, first, last = self._secret, self._secret[:MIN_MASKED], self._secret[-MIN_MASKED:]
        at = text.find(first)
        while at >= 0:
            shown = _common_length(secret, text[at : at + len(secret)])
            # A key may have an x where its mask begins.
            if any(_MASK.match(text, at + length) for length in range(MIN_MASKED, shown + 1)):
                return True
            at = text.find(first, at + 1)
        at = text.find(last)
        while at >= 0:
            end = at + len(last)
            shown = _common_length(secret[::-1], text[max(0, end - len(secret)) : end][::-1])
            before = text[max(0, end - shown - 10) : end - MIN_MASKED]
            if any(_MASK_BEFORE.search(before, 0, len(before) - back) for back in range(shown - MIN_MASKED + 1)):
                return True
            at = text.find(last, at + 1)
        return False


def _common_length(one: str, other: str) -> int:
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length


def _base64_cores(secret: str) -> list[str]:
    """The characters that base64 of any text around the key contains, one for each position of the key in it."""
    data = secret.encode()
    cores = []
    for offset, unsure in enumerate((0, 2, 3)):
        encoded = b64encode(b"\0" * offset + data).decode().rstrip("=")
        cores.append(encoded[unsure : len(encoded) - (1 if (offset + len(data)) % 3 else 0)])
    return cores
