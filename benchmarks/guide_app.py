"""The guide's design for metering model calls: FastAPI, prometheus_client, a new client per call.

Written from its description, only as a peer of the benchmark: it bills by one price, does not stream and has no ledger.
"""

from __future__ import annotations

import os
import time
from typing import Any

import httpx
from fastapi import FastAPI, HTTPException, Response
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

UPSTREAM = os.environ["BENCH_UPSTREAM"]
USD_PER_TOKEN = {"gpt-4.1": 8.0e-6, "deepseek-v3.2": 0.42e-6}

REQUESTS = Counter("mcp_requests_total", "Requests", ["endpoint", "method", "status"])
DURATION = Histogram(
    "mcp_request_duration_seconds",
    "Duration of requests",
    ["endpoint", "method"],
    buckets=[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0],
)
TOKENS = Counter("mcp_tokens_total", "Tokens", ["model", "token_type"])
COST = Counter("mcp_cost_usd", "Cost", ["model"])
ACTIVE = Gauge("mcp_active_requests", "Requests in flight")
ERRORS = Counter("mcp_errors_total", "Errors", ["error_type"])

app = FastAPI(title="The guide's way")


@app.get("/health")
async def health() -> dict[str, Any]:
    return {"status": "healthy", "timestamp": time.time()}


@app.get("/metrics")
async def metrics() -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


@app.post("/mcp/chat")
async def chat(body: dict[str, Any]) -> dict[str, Any]:
    ACTIVE.inc()
    started = time.time()
    try:
        if not body.get("messages"):
            ERRORS.labels(error_type="validation_error").inc()
            raise HTTPException(status_code=400, detail="messages is missing")
        response = await _call_upstream(body)
        _count(response, str(body.get("model", "deepseek-v3.2")))
        REQUESTS.labels(endpoint="/mcp/chat", method="POST", status="200").inc()
        return response
    finally:
        DURATION.labels(endpoint="/mcp/chat", method="POST").observe(time.time() - started)
        ACTIVE.dec()


async def _call_upstream(body: dict[str, Any]) -> dict[str, Any]:
    # This peer makes a client per call: each one builds a TLS context and opens a connection.
    async with httpx.AsyncClient(timeout=60.0) as client:
        response = await client.post(
            f"{UPSTREAM}/chat/completions", headers={"Authorization": "Bearer bench"}, json=body
        )
    if response.status_code != 200:
        ERRORS.labels(error_type="upstream_error").inc()
        raise HTTPException(status_code=502, detail="the upstream responded with an error")
    parsed: dict[str, Any] = response.json()
    return parsed


def _count(response: dict[str, Any], model: str) -> None:
    usage = response.get("usage", {})
    TOKENS.labels(model=model, token_type="prompt").inc(usage.get("prompt_tokens", 0))
    TOKENS.labels(model=model, token_type="completion").inc(usage.get("completion_tokens", 0))
    COST.labels(model=model).inc(usage.get("total_tokens", 0) * USD_PER_TOKEN.get(model, 0.42e-6))
