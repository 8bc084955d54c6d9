"""The allow-list of response headers that pass to clients, whichever provider sends them.

A header passes if a client or an SDK reads it. None of these makes a proxy or a browser act, and none holds an
address for direct use. docs/decisions/021-response-headers-by-allow-list.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mcpmeter.quota.rate_limit_headers import NAMES_READ

# fmt: off
_BODY_AND_RETRIES: Final = (
    "content-type",
    "retry-after", "retry-after-ms", "x-ms-retry-after-ms", "x-should-retry",
    "deprecation", "sunset", "warning",
)
_REQUEST_IDS: Final = (
    "request-id", "x-request-id", "x-client-request-id", "x-correlation-id", "x-trace-id", "traceresponse",
    "x-generation-id",  # OpenRouter
    "x-oai-request-id",  # OpenAI, Codex
    "apim-request-id", "x-ms-request-id", "x-ms-client-request-id",  # Azure
    "x-cloud-trace-context",  # Google, Anthropic
    "mistral-correlation-id", "x-kong-request-id",  # Mistral
    "x-together-traceid",
    "x-ds-trace-id",  # DeepSeek
    "msh-request-id", "x-msh-trace-id",  # Moonshot
    "x-amzn-requestid", "x-amzn-trace-id",  # Bedrock
    "cf-ray",  # every provider behind Cloudflare
)
_SERVED_BY: Final = (
    # openai-organization names the account that pays; OpenAI documents it, and clients show it.
    "openai-organization", "openai-processing-ms", "openai-project", "openai-version",
    "anthropic-organization-id", "anthropic-workspace-id",
    "server-timing", "x-envoy-upstream-service-time", "x-kong-proxy-latency", "x-kong-upstream-latency",
    "x-gemini-service-tier",
    "x-ms-region", "x-ms-deployment-name", "x-ms-served-model", "x-ms-rai-invoked", "x-ms-error-code",
    "azureml-model-session", "azureml-model-group", "azure-openai-deployment-utilization",
    "x-amzn-errortype",
)
# Without x-litellm-model-api-base, the address behind that proxy.
_COSTS_AND_LITELLM: Final = (
    "x-cost-usd",
    "x-litellm-call-id", "x-litellm-version", "x-litellm-model-id", "x-litellm-model-group",
    "x-litellm-response-cost", "x-litellm-key-spend", "x-litellm-cache-key",
    "x-litellm-response-duration-ms", "x-litellm-overhead-duration-ms",
    "x-litellm-attempted-retries", "x-litellm-attempted-fallbacks", "x-litellm-max-fallbacks",
)
# In most responses. Names without an entry do not pass either, but a lookup is cheaper than comparing the prefixes.
_USUAL_AND_DROPPED: Final = (
    "access-control-expose-headers", "alt-svc", "cache-control", "cf-cache-status", "connection", "content-encoding",
    "content-length", "date", "keep-alive", "server", "set-cookie", "strict-transport-security", "transfer-encoding",
    "vary", "via", "x-content-type-options",
)
# fmt: on

NAMES_OUT: Final[Mapping[str, bytes]] = {
    **dict.fromkeys(_USUAL_AND_DROPPED, b""),
    **{
        name: name.encode()
        for name in (*_BODY_AND_RETRIES, *_REQUEST_IDS, *_SERVED_BY, *_COSTS_AND_LITELLM, *sorted(NAMES_READ))
    },
}
"""Exact names in lower case, each as the bytes that go out; empty for a name that does not pass."""

PASSED_PREFIXES: Final = (
    "x-ratelimit-",
    "x-rate-limit-",
    "ratelimit-",
    "x-tokenlimit-",
)
"""Families of rate-limit headers. A provider's own families stand in its file: `providers.Provider.passed_headers`."""
