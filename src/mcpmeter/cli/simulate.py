"""`mcpmeter simulate`: a simulated upstream."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

import click

from mcpmeter.cli._event_loop import run
from mcpmeter.errors import ConfigInvalid

if TYPE_CHECKING:
    from mcpmeter.simulator import Price, Simulator

CURL = """  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\
    -d '{{"model": "gpt-4.1", "messages": [{{"role": "user", "content": "Hello"}}]}}'"""


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8001, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 picks a free one."
)
@click.option("--seed", default=0, show_default=True, type=int, help="The same seed gives the same responses.")
@click.option(
    "--latency-ms",
    default="0",
    show_default=True,
    help="Time to the first byte: 20, uniform:10-50 or lognormal:200,0.5.",
)
@click.option("--chunks-per-second", default="", help="Rate of a stream's chunks, written alike. Default: no delay.")
@click.option("--completion-tokens", default="lognormal:60,0.6", show_default=True, help="Length of completions.")
@click.option(
    "--background-ms", default="500", show_default=True, help="Time that a background response takes, written alike."
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="FAULT[:PROBABILITY]",
    help="For example status=503,retry_after=2:0.02. Repeatable.",
)
@click.option("--key", envvar="MCPMETER_SIMULATOR_KEY", help="Require this bearer key. Prefer $MCPMETER_SIMULATOR_KEY.")
@click.option(
    "--price",
    "prices",
    multiple=True,
    metavar="MODEL=PROMPT/COMPLETION",
    help="USD per 1M tokens, reported in X-Cost-USD. Repeatable.",
)
@click.option("--dated-models", is_flag=True, help="Report dated snapshots as the model.")
@click.option("--tool-calls", is_flag=True, help="Call the first tool of each request.")
def command(
    *,
    host: str,
    port: int,
    seed: int,
    latency_ms: str,
    chunks_per_second: str,
    completion_tokens: str,
    background_ms: str,
    faults: Sequence[str],
    key: str | None,
    prices: Sequence[str],
    dated_models: bool,
    tool_calls: bool,
) -> None:
    """Run a simulated upstream for every dialect, with exact usage and faults on demand.

    \b
    Example:
      mcpmeter simulate --latency-ms lognormal:200,0.5 --chunks-per-second 40 --fault status=503:0.02
    """
    from mcpmeter.simulator import Fault, Latency, Simulator, Spread

    _refuse_open_bind(host, key)
    simulator = Simulator(
        seed=seed,
        host=host,
        port=port,
        faults=[Fault.parse(fault) for fault in faults],
        first_byte=Latency.parse(latency_ms),
        between_chunks=Latency.from_rate(chunks_per_second) if chunks_per_second else Latency(),
        completion_tokens=Spread.parse(completion_tokens),
        background=Latency.parse(background_ms),
        tool_calls=tool_calls,
        dated_models=dated_models,
        key=key,
        prices=dict(_price(price) for price in prices),
    )
    run(_serve(simulator, needs_key=key is not None))


async def _serve(simulator: Simulator, *, needs_key: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with simulator:
        header = ' -H "Authorization: Bearer $MCPMETER_SIMULATOR_KEY"' if needs_key else ""
        click.echo(f"Simulator at {simulator.url} (base URL for an SDK: {simulator.base_url}). Ctrl-C stops it. Try:")
        click.echo(CURL.format(url=simulator.url, key=header))
        await stop.wait()
    totals = simulator.billing_log.totals
    click.echo(
        f"Served {totals.calls} calls ({totals.fault} faults, {totals.cancelled} cancelled by the client): "
        f"{totals.prompt_tokens} prompt and {totals.completion_tokens} completion tokens."
    )


def _refuse_open_bind(host: str, key: str | None) -> None:
    from mcpmeter.config import is_loopback

    if not key and not is_loopback(host):
        raise ConfigInvalid(
            f"{host} can be reached from other machines.", hint="Set MCPMETER_SIMULATOR_KEY, or listen on 127.0.0.1."
        )


def _price(text: str) -> tuple[str, Price]:
    from mcpmeter.simulator import Price

    model, _, amounts = text.rpartition("=")
    prompt, _, completion = amounts.partition("/")
    try:
        price = Price(Decimal(prompt), Decimal(completion))
    except InvalidOperation:
        price = Price(Decimal("NaN"), Decimal("NaN"))
    if not (model and price.prompt.is_finite() and price.completion.is_finite() and min(price) >= 0):
        raise ConfigInvalid(
            f"'{text[:80]}' is no price.", hint="Write MODEL=PROMPT/COMPLETION, as in gpt-4.1=2.50/10.00."
        )
    return model, price
