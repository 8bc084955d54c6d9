"""The price map of genai-prices, as that package itself resolves it.

The package runs in a process of its own, because ours may have another version of it loaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

from mcpmeter.errors import SetupError
from mcpmeter.pricing.comparison.price_map import MapModel, PriceKey, PriceMap, find_package

NAME: Final = "genai-prices"
_OPTION: Final = "--genai-prices"
_SECONDS: Final = 120


def read_genai_prices(
    given: Path | None, ids: Mapping[str, str], names: Mapping[str, Sequence[str]], at: datetime
) -> PriceMap:
    """Its prices of the given models at an instant (aware); `ids` are its ids of our providers. Raises SetupError."""
    package = find_package(given, NAME, "genai_prices", _OPTION)
    wanted = {ours: {"id": ids[ours], "names": list(models)} for ours, models in names.items() if ours in ids}
    answer = _ask(package.path, {"at": at.isoformat(), "providers": wanted})
    providers = {ours: {name: _model(found) for name, found in models.items()} for ours, models in answer.items()}
    return PriceMap(NAME, package.version, providers)


def _ask(package: Path, question: object) -> dict[str, dict[str, Any]]:
    with as_file(files(__package__) / "genai_answers.py") as script:
        command = [sys.executable, "-I", str(script), str(package.parent)]
        try:
            done = subprocess.run(  # noqa: S603 (the interpreter, our script, and a folder that the operator names)
                command, input=json.dumps(question), capture_output=True, text=True, timeout=_SECONDS, check=True
            )
            answer: dict[str, dict[str, Any]] = json.loads(done.stdout)
        except (subprocess.SubprocessError, OSError, ValueError):
            raise SetupError(
                f"{package} is no genai-prices that can be read.",
                hint=f"Install it apart with its dependencies, and give the folder with {_OPTION}.",
            ) from None
    return answer


def _model(found: Mapping[str, Any]) -> MapModel:
    prices = {
        PriceKey(item, condition, above): Decimal(amount)
        for condition, item, above, amount in found["prices"]
        if Decimal(amount)
    }
    return MapModel(prices, bool(found["deprecated"]))
