/* The simulated model: an HTTP/1.1 server of one thread, fast enough never to be the bottleneck.
 *
 *   upstream PORT ANSWER_FILE
 *
 * The response to every request is ANSWER_FILE as application/json, or for a body with "stream": true a stream of 100
 * chunks in OpenAI's format, each its own HTTP chunk and write, the last two with the finish reason and the usage, and
 * [DONE] after them. "pace_us=N" anywhere in the body sends one chunk per N microseconds; without it the streams send
 * one chunk each in turn, as fast as they are read.
 */
#include "wire.h"
#include <arpa/inet.h>
#include <strings.h>

enum { CHUNKS = 100, PIECES = CHUNKS + 2, REQUEST_BYTES = 65536, CHUNK_BYTES = 512 };

typedef struct Connection {
    int fd;
    int piece; /* next piece of the stream, -1 when there is none */
    int waits; /* whether it is in the queue of later streams */
    uint64_t pace_ns;
    uint64_t due_ns;
    struct Connection *next; /* in that queue */
    size_t filled;
    char buffer[REQUEST_BYTES];
} Connection;

typedef struct {
    char *bytes;
    size_t length;
} Text;

static Connection *connections[MAX_FDS];
static Text answer;
static Text pieces[PIECES];
static Connection *first_due, *last_due; /* streams of one pace are due in the order in which they were queued */

static void queue(Connection *c) {
    c->next = NULL;
    c->waits = 1;
    if (last_due) last_due->next = c;
    else first_due = c;
    last_due = c;
}

static Connection *take_first_due(void) {
    Connection *c = first_due;
    first_due = c->next;
    if (!first_due) last_due = NULL;
    c->waits = 0;
    return c;
}

static void take_out(Connection *wanted) {
    Connection *rest = first_due;
    first_due = last_due = NULL;
    while (rest) {
        Connection *c = rest;
        rest = c->next;
        if (c != wanted) queue(c);
    }
}

static void hang_up(Connection *c) {
    if (c->waits) take_out(c);
    connections[c->fd] = NULL;
    wire_close(c->fd);
    free(c);
}

/* The pieces of a stream: headers, CHUNKS events as HTTP chunks, and the end. */
static Text framed(const char *event) {
    Text text = {malloc(CHUNK_BYTES), 0};
    text.length = (size_t)snprintf(text.bytes, CHUNK_BYTES, "%zx\r\n%s\r\n", strlen(event), event);
    return text;
}

static Text event_of(int number) {
    static const char head[] = "data: {\"id\":\"chatcmpl-B7k2Qw9xT4\",\"object\":\"chat.completion.chunk\",\"created\":"
                               "1762300800,\"model\":\"gpt-4.1-2025-04-14\",\"service_tier\":\"default\","
                               "\"system_fingerprint\":\"fp_3f58d112f7\",\"choices\":";
    char event[CHUNK_BYTES];
    if (number == 0)
        snprintf(event, sizeof event, "%s[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                 "\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n", head);
    else if (number < CHUNKS - 2)
        snprintf(event, sizeof event, "%s[{\"index\":0,\"delta\":{\"content\":\" word%d\"},\"logprobs\":null,"
                 "\"finish_reason\":null}],\"usage\":null}\n\n", head, number);
    else if (number == CHUNKS - 2)
        snprintf(event, sizeof event, "%s[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
                 "\"usage\":null}\n\n", head);
    else
        snprintf(event, sizeof event, "%s[],\"usage\":{\"prompt_tokens\":118,\"completion_tokens\":%d,"
                 "\"total_tokens\":%d}}\n\n", head, CHUNKS - 3, CHUNKS + 115);
    return framed(event);
}

static void prepare_stream(void) {
    static char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                         "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
    Text first = event_of(0), end = framed("data: [DONE]\n\n");
    /* The headers are sent with the first chunk, the end of the body with the last. */
    pieces[0].length = strlen(head) + first.length;
    pieces[0].bytes = malloc(pieces[0].length);
    memcpy(pieces[0].bytes, head, strlen(head));
    memcpy(pieces[0].bytes + strlen(head), first.bytes, first.length);
    for (int i = 1; i < CHUNKS; i++) pieces[i] = event_of(i);
    pieces[CHUNKS] = end;
    pieces[CHUNKS + 1] = (Text){"0\r\n\r\n", 5};
}

static void prepare_answer(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    char body[REQUEST_BYTES];
    size_t length = fread(body, 1, sizeof body, file);
    fclose(file);
    while (length && (body[length - 1] == '\n' || body[length - 1] == '\r')) length--;
    answer.bytes = malloc(length + 256);
    int head = snprintf(answer.bytes, 256, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                        "Content-Length: %zu\r\n\r\n", length);
    memcpy(answer.bytes + head, body, length);
    answer.length = (size_t)head + length;
}

static void send_piece(Connection *c) {
    const Text *piece = &pieces[c->piece++];
    wire_send(c->fd, piece->bytes, piece->length, 1);
}

static void begin_stream(Connection *c, const char *pace, size_t length) {
    const char *mark = memmem(pace, length, "pace_us=", 8);
    c->pace_ns = mark ? strtoull(mark + 8, NULL, 10) * 1000u : 0;
    c->due_ns = now_ns();
    c->piece = 0;
    send_piece(c);
}

static const char *header(const char *head, const char *end, const char *name) {
    size_t length = strlen(name);
    for (const char *line = head; (line = memchr(line, '\n', (size_t)(end - line)));) {
        line++;
        if ((size_t)(end - line) > length && !strncasecmp(line, name, length)) return line + length;
    }
    return NULL;
}

/* Length of the complete request at the start of the buffer, 0 if it is incomplete. */
static size_t request_length(Connection *c, char **body) {
    char *blank = memmem(c->buffer, c->filled, "\r\n\r\n", 4);
    if (!blank) return 0;
    *body = blank + 4;
    size_t there = c->filled - (size_t)(*body - c->buffer);
    const char *length = header(c->buffer, blank, "content-length:");
    if (length) {
        size_t wanted = strtoull(length, NULL, 10);
        return there >= wanted ? (size_t)(*body - c->buffer) + wanted : 0;
    }
    if (!header(c->buffer, blank, "transfer-encoding:")) return (size_t)(*body - c->buffer);
    char *end = there >= 5 ? memmem(*body, there, "0\r\n\r\n", 5) : NULL;
    return end ? (size_t)(end + 5 - c->buffer) : 0;
}

static int wants_stream(const char *body, size_t length) {
    return memmem(body, length, "\"stream\":true", 13) || memmem(body, length, "\"stream\": true", 14);
}

/* The last complete request for a JSON response: the load repeats the same one. */
static Text usual;

static void keep_usual(const char *request, size_t length) {
    usual.bytes = realloc(usual.bytes, length);
    usual.length = length;
    memcpy(usual.bytes, request, length);
}

/* A response of 1 KB always fits the socket: each client waits for it before its next request. */
static void send_answer(Connection *c) {
    wire_send(c->fd, answer.bytes, answer.length, 0);
}

static void serve_request(Connection *c) {
    char *body;
    size_t length = request_length(c, &body);
    if (!length || c->piece >= 0) return;
    size_t body_length = length - (size_t)(body - c->buffer);
    c->filled -= length;
    if (wants_stream(body, body_length)) {
        begin_stream(c, body, body_length);
    } else {
        if (!c->filled) keep_usual(c->buffer, length);
        send_answer(c);
    }
    memmove(c->buffer, c->buffer + length, c->filled);
}

/* A chunk is sent. The next one follows in the next turn; after the last one, the stream ends. */
static void on_sent(int fd) {
    Connection *c = connections[fd];
    if (c->piece == PIECES) {
        c->piece = -1;
        if (c->filled) serve_request(c); /* the client may have sent its next request already */
    } else if (c->pace_ns && c->piece < CHUNKS) {
        c->due_ns += c->pace_ns;
        queue(c);
    } else {
        send_piece(c);
    }
}

static void on_bytes(int fd, const char *data, size_t length) {
    Connection *c = connections[fd];
    if (!c->filled && c->piece < 0 && length == usual.length && !memcmp(data, usual.bytes, length)) {
        send_answer(c);
    } else if (length > REQUEST_BYTES - c->filled) {
        hang_up(c);
    } else {
        memcpy(c->buffer + c->filled, data, length);
        c->filled += length;
        serve_request(c);
    }
}

static void on_end(int fd) {
    hang_up(connections[fd]);
}

static void on_connection(int fd) {
    int one = 1;
    Connection *c = fd < MAX_FDS ? calloc(1, sizeof *c) : NULL;
    if (!c) {
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->fd = fd;
    c->piece = -1;
    connections[fd] = c;
    wire_watch(fd);
}

static void advance_due(void) {
    uint64_t now = now_ns();
    while (first_due && first_due->due_ns <= now) send_piece(take_first_due());
}

static int listen_on(int port) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    /* A pacing congestion control, the default of some systems, would set a timer per response on loopback. */
    setsockopt(listener, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) die("listen");
    return listener;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: upstream PORT ANSWER_FILE\n");
        return 2;
    }
    prepare_answer(argv[2]);
    prepare_stream();
    wire_start();
    wire_listen(listen_on(atoi(argv[1])));
    for (;;) {
        wire_wait(first_due ? first_due->due_ns : NEVER);
        advance_due();
    }
}
