"""The container image: built from a checkout, pinned by constraints.txt, run by a user that is not root."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.render._container import CONFIG, HEALTHY, LEDGER_FOLDER, PORT, USER

PYTHON: Final = "python:3.13-slim"
COPIED: Final = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "src")
"""All that a wheel is built from."""

ASK_HEALTH: Final = (
    f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{PORT}{HEALTHY}', timeout=3)"  # raises unless 200
)

DOCKERFILE: Final = f"""\
# Made by `mcpmeter monitoring write`. From a checkout: docker build -f deploy/Dockerfile -t mcpmeter .
FROM {PYTHON} AS build
WORKDIR /build
COPY {" ".join(name for name in COPIED if name != "src")} ./
COPY src ./src
RUN python -m venv /opt/mcpmeter \\
 && /opt/mcpmeter/bin/pip install --no-cache-dir --constraint constraints.txt '.[server,postgres]'

FROM {PYTHON}
RUN useradd --uid {USER} --user-group --no-create-home --shell /usr/sbin/nologin mcpmeter \\
 && install --directory --owner mcpmeter --group mcpmeter --mode 0700 {LEDGER_FOLDER}
COPY --from=build /opt/mcpmeter /opt/mcpmeter
ENV PATH=/opt/mcpmeter/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER {USER}:{USER}
VOLUME {LEDGER_FOLDER}
EXPOSE {PORT}
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "-c", "{ASK_HEALTH}"]
ENTRYPOINT ["mcpmeter"]
CMD ["serve", "--config", "{CONFIG}"]
"""
IGNORED: Final = "\n".join(["# Everything but what the image is built from.", "*", *(f"!{name}" for name in COPIED)])


def render(options: MonitoringOptions) -> Mapping[str, str]:
    """The Dockerfile and what its build may see."""
    return {"Dockerfile": DOCKERFILE, "Dockerfile.dockerignore": f"{IGNORED}\n**/__pycache__\n"}
