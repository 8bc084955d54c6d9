// Loaded before Portkey's gateway, for two changes that it has no setting for.
const net = require("node:net");

// Every listener is on loopback only.
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  return listen.call(this, port, "127.0.0.1", ...rest.filter((argument) => typeof argument === "function"));
};

// The release changes a fetched response's headers, immutable in Node, and therefore fails every stream with 500.
const plainFetch = globalThis.fetch;
globalThis.fetch = async (...request) => {
  const response = await plainFetch(...request);
  if (response.headers.get("content-type")?.startsWith("text/event-stream")) {
    Object.defineProperty(response, "headers", { value: new Headers(response.headers) });
  }
  return response;
};
