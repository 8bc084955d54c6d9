"""HTTP/1.1 on httptools: the server side, the client side, and one request with its response.

Owns bytes on connections: parsing, framing, bounds, keep-alive, backpressure, disconnects, deadlines, pool. Knows no
LLM dialect, no MCP and no meter: relay, proxy and pages use it alike. Imports no HTTP framework; uvicorn opens the
listening socket and calls `server.protocol`.

Invariants: everything a peer controls is bounded and costs linear time; responses leave in the order of their requests;
a body is never parsed as a request.
"""
