"""MCPLatencyDegraded: one in twenty requests of an endpoint takes too long, including streaming."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import llm, mcp
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries
from mcpmeter.monitoring.recording import LISTENING

NAME: Final = "MCPLatencyDegraded"
SECONDS: Final = Parameter("seconds", "30", "Threshold of the 95th percentile, in seconds.", most="600")
REQUESTS: Final = Parameter("requests", "20", "Requests to an endpoint in five minutes below which it does not fire.")
PARAMETERS: Final = (SECONDS, REQUESTS)

CHAT: Final = 'endpoint="/v1/chat/completions",method="POST"'


def durations(fast: str, all_of_them: str, labels: str = CHAT) -> dict[str, str]:
    """Buckets of requests: the fast ones within a second, the others between 30 and 60 seconds."""
    bucket = "mcp_request_duration_seconds_bucket"
    return {
        f'{bucket}{{{labels},le="1.0"}}': fast,
        f'{bucket}{{{labels},le="30.0"}}': fast,
        f'{bucket}{{{labels},le="60.0"}}': all_of_them,
        f'{bucket}{{{labels},le="+Inf"}}': all_of_them,
        f"mcp_request_duration_seconds_count{{{labels}}}": all_of_them,
    }


def alert(q: Queries) -> Alert:
    """Uses the recorded quantile, whose buckets are summed over replicas."""
    return Alert(
        name=NAME,
        area="slo",
        parameters=PARAMETERS,
        rules=(Rule(expr=_expr(q), hold="10m"),),
        summary="Requests to {{ $labels.endpoint }} are slow.",
        description="One in twenty requests to {{ $labels.endpoint }} of {{ $labels.job }} takes longer than "
        f"{{{{ $value | humanizeDuration }}}}. The threshold is {q[SECONDS]}s.",
        runbook=Runbook(
            means="Callers wait. The duration is from the first byte of a request to the last byte of its response, so "
            "that a long response counts as slow too. A quantile is at most the top bucket, "
            f"{mcp.REQUEST_DURATION.buckets[-1]:g}s.",
            check=(
                Check("By provider and model", q.quantile("0.95", llm.OPERATION_DURATION, "5m", *_MODEL)),
                Check("Time to first chunk", q.quantile("0.95", llm.TIME_TO_FIRST_CHUNK, "5m", *_MODEL)),
                Check("Requests in progress", q.recorded("job:mcp_active_requests:sum")),
            ),
            do=(
                "One provider is slow: route its models elsewhere, or lower `relay.timeouts.first_byte_seconds` so "
                "that failover starts sooner.",
                "All are slow: check MCPActiveRequestsSpike, the machine's CPU and the ledger's commit times.",
                "Responses are long by nature: raise `monitoring.thresholds.MCPLatencyDegraded.seconds`.",
            ),
            fault="The provider, unless model calls are fast and requests are not.",
        ),
        cases=(
            fires(
                "a tenth of the responses takes 30 to 60 seconds",
                "30m",
                durations("0+54x40", "0+60x40"),
                Firing({"endpoint": "/v1/chat/completions"}, "45s"),
            ),
            quiet("low traffic: both of two requests are slow", "30m", durations("0x40", "0+0.4x40")),
            quiet("all requests are fast", "30m", durations("0+60x40", "0+60x40")),
            quiet("slow for four minutes", "30m", durations("0+60x20 1200+30x4 1320+60x20", "0+60x20 1200+60x24")),
            quiet("a restart resets the buckets", "30m", durations("0+60x20 0+60x20", "0+60x20 0+60x20")),
            quiet("first scrape of a service with a slow past", "2m", durations("10", "9000")),
            quiet("no request was made yet", "30m", {}),
            quiet(
                "one noisy replica of thirty",
                "30m",
                {
                    **{on("rest", name): values for name, values in durations("0+1740x40", "0+1740x40").items()},
                    **{on("noisy", name): values for name, values in durations("0x40", "0+60x40").items()},
                },
            ),
            quiet(
                "subscriptions that last for a minute",
                "30m",
                durations("0x40", "0+60x40", 'endpoint="/mcp",method="subscriptions/listen"'),
            ),
        ),
    )


_MODEL: Final = ("gen_ai_provider_name", "gen_ai_request_model")


def _expr(q: Queries) -> str:
    quantile = q.recorded(f"job_endpoint:{mcp.REQUEST_DURATION.name}:p95_rate5m")
    count = q.increase(mcp.REQUEST_DURATION, "5m", "endpoint", part="count", where=(LISTENING,))
    return f"{quantile} > {q[SECONDS]} and {q.on('endpoint')} {count} >= {q[REQUESTS]}"
