"""The server's side of HTTP/1.1: one `ServerProtocol` for each connection, one `RequestCycle` for each request.

Owns parsing, bounds, order, keep-alive and disconnects. Listening, the task of each request and the end of the process
belong to uvicorn, which gets `ServerProtocol` by its `http=` option; nothing is inherited or imported from it.
"""
