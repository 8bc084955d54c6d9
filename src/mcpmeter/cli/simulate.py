"""`mcpmeter simulate`: an upstream that costs nothing."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

import click

from mcpmeter.errors import ConfigInvalid

if TYPE_CHECKING:
    from mcpmeter.simulator import Price, Simulator

CURL = """  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\
    -d '{{"model": "gpt-4.1", "messages": [{{"role": "user", "content": "Hello"}}]}}'"""


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8001, show_default=True, type=click.IntRange(0, 65535), help="0 takes any free one.")
@click.option("--seed", default=0, show_default=True, type=int, help="The same seed gives the same answers.")
@click.option(
    "--latency-ms",
    default="0",
    show_default=True,
    help="Time to the first byte: 20, uniform:10-50 or lognormal:200,0.5.",
)
@click.option("--chunks-per-second", default="", help="Rate of a stream's chunks, written alike. Default: at once.")
@click.option("--completion-tokens", default="lognormal:60,0.6", show_default=True, help="Length of answers.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="FAULT[:PROBABILITY]",
    help="As status=503,retry_after=2:0.02. Repeatable.",
)
@click.option("--key", envvar="MCPMETER_SIMULATOR_KEY", help="Demand this bearer key. Better given in the environment.")
@click.option(
    "--price",
    "prices",
    multiple=True,
    metavar="MODEL=PROMPT/COMPLETION",
    help="USD per 1M tokens, told in X-Cost-USD. Repeatable.",
)
@click.option("--dated-models", is_flag=True, help="Name dated snapshots in answers.")
@click.option("--tool-calls", is_flag=True, help="Call the first of the given tools.")
def command(
    *,
    host: str,
    port: int,
    seed: int,
    latency_ms: str,
    chunks_per_second: str,
    completion_tokens: str,
    faults: Sequence[str],
    key: str | None,
    prices: Sequence[str],
    dated_models: bool,
    tool_calls: bool,
) -> None:
    """Run an upstream for every dialect with exact usage and faults on demand.

    \b
    Example:
      mcpmeter simulate --latency-ms lognormal:200,0.5 --chunks-per-second 40 --fault status=503:0.02
    """
    from mcpmeter.simulator import Fault, Latency, Simulator, Spread

    _refuse_open_doors(host, key)
    simulator = Simulator(
        seed=seed,
        host=host,
        port=port,
        faults=[Fault.parse(fault) for fault in faults],
        first_byte=Latency.parse(latency_ms),
        between_chunks=Latency.from_rate(chunks_per_second) if chunks_per_second else Latency(),
        completion_tokens=Spread.parse(completion_tokens),
        tool_calls=tool_calls,
        dated_models=dated_models,
        key=key,
        prices=dict(_price(price) for price in prices),
    )
    with asyncio.Runner(loop_factory=_fastest_loop) as runner:
        runner.run(_serve(simulator, asks_for_key=key is not None))


async def _serve(simulator: Simulator, *, asks_for_key: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with simulator:
        header = ' -H "Authorization: Bearer $MCPMETER_SIMULATOR_KEY"' if asks_for_key else ""
        click.echo(f"Simulator at {simulator.url} (base URL for an SDK: {simulator.base_url}). Ctrl-C ends it. Try:")
        click.echo(CURL.format(url=simulator.url, key=header))
        await stop.wait()
    totals = simulator.billing_log.totals
    click.echo(
        f"Answered {totals.calls} calls ({totals.fault} faults, {totals.cancelled} cancelled by the client): "
        f"{totals.prompt_tokens} prompt and {totals.completion_tokens} completion tokens."
    )


def _fastest_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _refuse_open_doors(host: str, key: str | None) -> None:
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and not key:
        raise ConfigInvalid(
            f"{host} may be reached from other machines.", hint="Set MCPMETER_SIMULATOR_KEY, or listen on 127.0.0.1."
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
