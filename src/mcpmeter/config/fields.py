"""Types of the settings tree's values, each with a sentence for its fault, and the base class `Section`."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo
from pydantic_core import PydanticCustomError

from mcpmeter.access.keys import MAX_PER_MINUTE, weakness_of
from mcpmeter.http.origins import authority_of, origin_of
from mcpmeter.items import is_alias_target
from mcpmeter.providers import base_url_fault

INSTANT_SENTENCE: Final = "must be a date, or an instant such as 2027-01-31T12:00:00Z"


def must(sentence: str) -> PydanticCustomError:
    """A validator's error with this sentence."""
    # Passed as context because pydantic would treat braces in a message as placeholders.
    return PydanticCustomError("must", "{sentence}", {"sentence": sentence})


def _whole(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise must("must be a whole number")
    return value


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise must("must be true or false")
    return value


def decimal(value: object) -> Decimal:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?", value):
        return Decimal(value)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise must("must be a number in plain decimal")
    return Decimal(value)


def _instant(value: object) -> datetime:
    try:
        instant = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise must(INSTANT_SENTENCE) from None
    if not isinstance(instant, datetime):
        raise must(INSTANT_SENTENCE)
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)


def _seconds(value: object) -> float:
    return value if isinstance(value, float) else float(decimal(value))


def matching(pattern: str, sentence: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise must(sentence)
        return text

    return check


def some(items: tuple[Any, ...]) -> tuple[Any, ...]:
    if not items:
        raise must("must not be empty")
    return items


def _label(text: str) -> str:
    if text == "other":
        raise must("must not be 'other', which is the label of unnamed values")
    return text


def _billable_item(text: str) -> str:
    if not is_alias_target(text):
        raise must("must be a billable item such as 'cached_read', a total such as 'prompt_tokens', or 'free'")
    return text


def _base_url(text: str) -> str:
    if fault := base_url_fault(text):
        raise must(fault)
    return text.rstrip("/")


def sendable(key: str) -> bool:
    """Whether a key can be sent in a header: printable ASCII without blanks."""
    return key.isascii() and key.isprintable() and bool(key) and " " not in key


def _sendable_secret(secret: SecretStr) -> SecretStr:
    if not sendable(secret.get_secret_value()):
        raise must("must be printable ASCII without blanks, and not empty")
    return secret


def _ledger_url(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if not text.startswith(("postgresql://", "postgres://")) or not text.isprintable():
        raise must("must begin with postgresql://")
    return secret


def _strong_secret(secret: SecretStr) -> SecretStr:
    if weakness := weakness_of(secret.get_secret_value()):
        raise must(f"{weakness}; `openssl rand -hex 32` prints a good one")
    return secret


def _allowed_host(text: str) -> str:
    address = f"[{text}]" if text.count(":") > 1 and "[" not in text else text
    if authority_of(address) is None:
        raise must("must be a host name or an IP address, with or without a port, and no pattern or URL")
    return text


def _allowed_origin(text: str) -> str:
    if origin_of(text) is None:
        raise must("must be 'scheme://host' or 'scheme://host:port' without a path, as browsers send it")
    return text


def _path(path: Path, info: ValidationInfo) -> Path:
    folder = info.context.get("folder") if info.context else None
    try:
        path = path.expanduser()
    except RuntimeError:
        raise must("names the home of a user unknown on this machine") from None
    if not str(path).isprintable():
        raise must("contains an unprintable character")
    return folder / path if folder else path


NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

Whole = Annotated[int, BeforeValidator(_whole)]
Switch = Annotated[bool, BeforeValidator(_switch)]
Port = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=65535)]
Bytes = Annotated[int, BeforeValidator(_whole), Field(ge=1024, le=1 << 40)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0.01, le=86400, allow_inf_nan=False)]
Milliseconds = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=600_000)]
PerMinute = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=MAX_PER_MINUTE)]
Instant = Annotated[datetime, BeforeValidator(_instant)]
Weight = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=1000)]
Share = Annotated[Decimal, BeforeValidator(decimal), Field(ge=0, le=1, allow_inf_nan=False)]
Rate = Annotated[Decimal, BeforeValidator(decimal), Field(gt=0, allow_inf_nan=False)]
Host = Annotated[
    str,
    AfterValidator(matching(r"[A-Za-z0-9:._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]", "must be an IP address or a host name")),
]
AllowedHost = Annotated[str, AfterValidator(_allowed_host)]
AllowedOrigin = Annotated[str, AfterValidator(_allowed_origin)]
Name = Annotated[
    str,
    AfterValidator(matching(NAME_PATTERN, "must be 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first")),
    AfterValidator(_label),
]
TeamName = Annotated[
    str,
    AfterValidator(
        matching(
            r"\w([\w .@+-]{0,62}\w)?", "must be 1 to 64 letters, digits, blanks or any of '.@+-_', no blank at an end"
        )
    ),
    AfterValidator(_label),
]
ModelName = Annotated[
    str, AfterValidator(matching(r"[!-~]{1,200}", "must be 1 to 200 printable characters, no blanks"))
]
AliasTarget = Annotated[
    str,
    AfterValidator(matching(rf"{NAME_PATTERN}/[!-~]{{1,200}}", "must be 'provider/model', one of 'providers' first")),
]
UsagePath = Annotated[
    str, AfterValidator(matching(r"[!-~]{1,200}", "must be the path of a field: names joined by dots"))
]
BillableItem = Annotated[str, AfterValidator(_billable_item)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
LedgerUrl = Annotated[SecretStr, AfterValidator(_ledger_url)]
Lease = Annotated[Seconds, Field(ge=1)]
LedgerConnect = Annotated[Seconds, Field(ge=0.5, le=60)]
SettleSeconds = Annotated[Seconds, Field(ge=0.05, le=5)]
ApiKey = Annotated[SecretStr, AfterValidator(_sendable_secret)]
Secret = Annotated[SecretStr, AfterValidator(_strong_secret)]
Sha256 = Annotated[str, AfterValidator(matching(r"[0-9a-f]{64}", "must be a SHA-256: 64 hex digits in lower case"))]
FilePath = Annotated[Path, AfterValidator(_path)]


def setting(default: Any = ..., *, help: str, example: Any) -> Any:
    """A field of the tree with the description and the example that docs/configuration.md prints."""
    return Field(default=default, description=help, examples=[example])


class Section(BaseModel):
    """The base of every section: unknown keys are errors, values are immutable, errors repeat no input."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def name_alone(value: object, section: type[Section], sentence: str) -> object:
    """`{"name": value}` for a text; a mapping or a section as it is; the sentence is the fault of anything else."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, dict | section):
        raise must(sentence)
    return value
