// Loaded before Portkey's gateway, for two things that it has no setting for.
const net = require("node:net");

// Whatever listens, listens on the loopback only.
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  return listen.call(this, port, "127.0.0.1", ...rest.filter((argument) => typeof argument === "function"));
};

// The release adds headers to a fetched answer's own, which Node keeps immutable, and answers 500 to every stream.
const plainFetch = globalThis.fetch;
globalThis.fetch = async (...request) => {
  const answer = await plainFetch(...request);
  if (answer.headers.get("content-type")?.startsWith("text/event-stream")) {
    Object.defineProperty(answer, "headers", { value: new Headers(answer.headers) });
  }
  return answer;
};
