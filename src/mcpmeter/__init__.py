"""mcpmeter: the meter on MCP servers and on the LLM calls behind them."""
