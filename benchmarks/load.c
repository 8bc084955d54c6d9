/* Load from one thread, for JSON responses and for streams.
 *
 *   load [--connections N] [--seconds S] [--rate CALLS_PER_SECOND] [--stream] [--header LINE]… PORT PATH BODY_FILE
 *
 * Without --rate each connection sends the next request as soon as it has a response. With it, calls are due at a
 * constant rate whether or not earlier ones are complete, and latency counts from the time a call was due, so that a
 * stalling server cannot hide it (no coordinated omission). After the time no new call starts, and started calls are
 * completed. A stream is complete if its HTTP framing is and its last event is [DONE]. Prints one line of JSON.
 */
#include "wire.h"
#include <arpa/inet.h>
#include <getopt.h>
#include <strings.h>

enum { MAX_CONNECTIONS = 1024, HEAD_BYTES = 16384, LONGEST_BODY = 65536, EXPONENTS = 58, STEPS = 128 };
static const uint64_t PATIENCE_NS = 60000000000;

typedef enum { HEAD, SIZED, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, UNTIL_CLOSE } State;

typedef struct {
    int fd; /* -1: not connected */
    int busy;
    int fresh; /* no response on this connection yet */
    State state;
    uint64_t due_ns, read_ns; /* when the call was due, when data was last read */
    uint64_t left; /* bytes of the body, or of this HTTP chunk */
    size_t line_bytes;
    int status, keeps, first_seen;
    int column; /* position in the line of an event stream */
    char line[16];
    int done_seen;
    size_t head_bytes;
    char head[HEAD_BYTES];
} Connection;

typedef struct {
    uint64_t counts[EXPONENTS * STEPS];
    uint64_t total;
} Histogram;

static Connection connections[MAX_CONNECTIONS], *connection_of[MAX_FDS];
static int idle[MAX_CONNECTIONS], idle_count; /* a stack: few connections stay warm at a low rate */
static Histogram latency, first_chunk;
static uint64_t calls, not_2xx, socket_errors, broken_streams, events_seen, body_bytes, issued;
static char *request;
static size_t request_bytes;
static int port, streams;
static uint64_t started_ns, ends_ns, interval_ns, last_answer_ns;

/* Log-linear: 128 steps per power of two, an error below 1 %. */
static void note(Histogram *h, uint64_t value) {
    int exponent = value < STEPS ? 0 : 57 - __builtin_clzll(value);
    uint64_t step = value < STEPS ? value : (value >> exponent) & (STEPS - 1);
    h->counts[exponent * STEPS + (int)step]++;
    h->total++;
}

static double quantile_us(const Histogram *h, double q) {
    uint64_t wanted = (uint64_t)(q * (double)h->total + 0.5), seen = 0;
    for (int i = 0; i < EXPONENTS * STEPS; i++) {
        seen += h->counts[i];
        if (h->counts[i] && seen >= wanted) {
            int exponent = i / STEPS;
            return (double)(exponent ? (uint64_t)(i % STEPS) << exponent : (uint64_t)i) / 1000.0;
        }
    }
    return 0;
}

static void close_connection(Connection *c) {
    if (c->fd >= 0) wire_close(c->fd);
    c->fd = -1;
}

static void open_connection(Connection *c) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    /* A pacing congestion control, the default of some systems, would set a timer per request on loopback. */
    setsockopt(c->fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
    c->fresh = 1;
    wire_watch(c->fd);
    connection_of[c->fd] = c;
}

static void release(Connection *c) {
    c->busy = 0;
    idle[idle_count++] = (int)(c - connections);
}

static void fail(Connection *c) {
    socket_errors++;
    close_connection(c);
    release(c);
}

static void send_request(Connection *c) {
    if (c->fd < 0) open_connection(c);
    c->state = HEAD;
    c->head_bytes = c->line_bytes = 0;
    c->first_seen = c->done_seen = c->column = 0;
    wire_send(c->fd, request, request_bytes, 0);
}

static void ask(uint64_t due_ns) {
    Connection *c = &connections[idle[--idle_count]];
    c->busy = 1;
    c->due_ns = due_ns;
    issued++;
    send_request(c);
}

static void finish(Connection *c) {
    uint64_t now = last_answer_ns = c->read_ns;
    calls++;
    not_2xx += c->status / 100 != 2;
    broken_streams += streams && !c->done_seen;
    note(&latency, now - c->due_ns);
    c->fresh = 0;
    if (!c->keeps) close_connection(c);
    release(c);
    if (!interval_ns && now < ends_ns) ask(now);
}

/* Counts events by lines that start with "data:", and keeps whether the last one was [DONE]. */
static void read_events(Connection *c, const char *data, size_t length) {
    for (const char *end = data + length; data < end;) {
        const char *newline = memchr(data, '\n', (size_t)(end - data));
        const char *stop = newline ? newline : end;
        while (data < stop && c->column < (int)sizeof c->line) c->line[c->column++] = *data++;
        data = stop;
        if (!newline) return;
        data++;
        if (c->column >= 5 && !memcmp(c->line, "data:", 5)) {
            c->done_seen = c->column >= 12 && !memcmp(c->line, "data: [DONE]", 12);
            events_seen += !c->done_seen;
        }
        c->column = 0;
    }
}

static void take_body(Connection *c, const char *data, size_t length) {
    body_bytes += length;
    if (!c->first_seen) note(&first_chunk, c->read_ns - c->due_ns);
    c->first_seen = 1;
    if (streams) read_events(c, data, length);
}

static const char *header(const Connection *c, const char *name) {
    const char *end = c->head + c->head_bytes;
    size_t length = strlen(name);
    for (const char *line = c->head; (line = memchr(line, '\n', (size_t)(end - line)));) {
        line++;
        if ((size_t)(end - line) > length && !strncasecmp(line, name, length)) return line + length;
    }
    return NULL;
}

/* The last parsed headers and their values: most responses of a server have the same ones. */
static struct {
    char text[512];
    size_t length;
    int status, keeps;
    uint64_t left;
    State state;
} usual;

static size_t take_usual_head(Connection *c, const char *data, size_t length) {
    if (!usual.length || c->head_bytes || length < usual.length || memcmp(data, usual.text, usual.length)) return 0;
    c->status = usual.status;
    c->keeps = usual.keeps;
    c->left = usual.left;
    c->state = usual.state;
    c->line_bytes = 0;
    return usual.length;
}

static void keep_head(const Connection *c) {
    usual.length = c->head_bytes < sizeof usual.text ? c->head_bytes : 0;
    memcpy(usual.text, c->head, usual.length);
    usual.status = c->status;
    usual.keeps = c->keeps;
    usual.left = c->left;
    usual.state = c->state;
}

/* Takes bytes up to the blank line; returns their number. */
static size_t take_head(Connection *c, const char *data, size_t length) {
    size_t at_once = take_usual_head(c, data, length);
    if (at_once) return at_once;
    size_t taken = length < HEAD_BYTES - 1 - c->head_bytes ? length : HEAD_BYTES - 1 - c->head_bytes;
    size_t before = c->head_bytes;
    memcpy(c->head + before, data, taken);
    char *blank = memmem(c->head, before + taken, "\r\n\r\n", 4);
    if (!blank) {
        c->head_bytes += taken;
        return taken;
    }
    c->head_bytes = (size_t)(blank + 4 - c->head);
    c->head[c->head_bytes] = 0;
    const char *connection = header(c, "connection:"), *sized = header(c, "content-length:");
    const char *coding = header(c, "transfer-encoding:");
    c->status = atoi(c->head + 9);
    c->keeps = !(connection && !strncasecmp(connection + strspn(connection, " "), "close", 5));
    c->left = sized ? strtoull(sized, NULL, 10) : 0;
    c->state = coding ? CHUNK_SIZE : sized ? SIZED : UNTIL_CLOSE;
    c->line_bytes = 0;
    keep_head(c);
    return c->head_bytes - before;
}

/* A line of the chunked framing; 1 when it is complete. */
static int take_line(Connection *c, const char **data, const char *end) {
    while (*data < end) {
        char byte = *(*data)++;
        if (byte == '\n') return 1;
        if (byte != '\r' && c->line_bytes < 32) c->head[c->line_bytes++] = byte;
    }
    return 0;
}

static void take_framing(Connection *c, const char **data, const char *end) {
    if (!take_line(c, data, end)) return;
    c->head[c->line_bytes] = 0;
    if (c->state == CHUNK_SIZE) {
        c->left = strtoull(c->head, NULL, 16);
        c->state = c->left ? CHUNK_DATA : TRAILER;
    } else if (c->state == CHUNK_END) {
        c->state = CHUNK_SIZE;
    } else if (!c->line_bytes) {
        finish(c);
    }
    c->line_bytes = 0;
}

static void take(Connection *c, const char *data, size_t length) {
    for (const char *end = data + length; data < end || (c->busy && c->state == SIZED && !c->left);) {
        if (!c->busy) return;
        switch (c->state) {
        case HEAD:
            data += take_head(c, data, (size_t)(end - data));
            if (c->state == HEAD && c->head_bytes >= HEAD_BYTES - 1) return fail(c);
            break;
        case SIZED:
        case CHUNK_DATA:
        case UNTIL_CLOSE: {
            size_t part = (size_t)(end - data);
            if (c->state != UNTIL_CLOSE && part > c->left) part = c->left;
            if (part) take_body(c, data, part);
            data += part;
            if (c->state == UNTIL_CLOSE) break;
            c->left -= part;
            if (c->left) break;
            if (c->state == SIZED) return finish(c);
            c->state = CHUNK_END;
            break;
        }
        default:
            take_framing(c, &data, end);
        }
    }
}

static void on_bytes(int fd, const char *data, size_t length) {
    Connection *c = connection_of[fd];
    c->read_ns = now_ns();
    if (c->busy) take(c, data, length);
    else close_connection(c); /* no call is in progress */
}

static void on_end(int fd) {
    Connection *c = connection_of[fd];
    int kept_before = !c->fresh && c->state == HEAD && !c->head_bytes;
    c->read_ns = now_ns();
    close_connection(c);
    if (!c->busy) return; /* the server closed an idle connection */
    if (c->state == UNTIL_CLOSE) {
        c->keeps = 0;
        finish(c);
    } else if (kept_before) {
        send_request(c); /* closed while the request was sent: any client retries */
    } else {
        fail(c);
    }
}

static void on_sent(int fd) {
    (void)fd; /* a request is small: the response follows */
}

static void on_connection(int fd) {
    (void)fd;
}

static void ask_what_is_due(uint64_t now) {
    while (idle_count && started_ns + issued * interval_ns <= now) {
        uint64_t due = started_ns + issued * interval_ns;
        if (due >= ends_ns) return;
        ask(due);
    }
}

/* The next time to wake up without data. */
static uint64_t next_look(uint64_t now) {
    uint64_t due = started_ns + issued * interval_ns;
    if (now >= ends_ns) return ends_ns + PATIENCE_NS;
    return interval_ns && idle_count && due < ends_ns ? due : ends_ns;
}

static int is_over(uint64_t now, int wanted) {
    int under_way = wanted - idle_count;
    if (now < ends_ns) return 0;
    return !under_way || now >= ends_ns + PATIENCE_NS;
}

static void run(int wanted) {
    while (!interval_ns && idle_count) ask(now_ns());
    for (uint64_t now = now_ns(); !is_over(now, wanted); now = now_ns()) {
        if (interval_ns && now < ends_ns) ask_what_is_due(now);
        wire_wait(next_look(now));
    }
}

static void make_request(const char *path, const char *body_file, const char *headers) {
    static char body[LONGEST_BODY];
    FILE *file = fopen(body_file, "rb");
    if (!file) die(body_file);
    size_t length = fread(body, 1, sizeof body, file);
    fclose(file);
    int head = asprintf(&request, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                        "Content-Length: %zu\r\n%s\r\n", path, port, length, headers);
    request = realloc(request, (size_t)head + length);
    memcpy(request + head, body, length);
    request_bytes = (size_t)head + length;
}

static void print_report(int wanted, uint64_t due, const char *loop) {
    printf("{\"loop\": \"%s\", \"calls\": %lu, \"due\": %lu, \"unanswered\": %d, \"duration_us\": %lu,"
           " \"not_2xx\": %lu,"
           " \"socket_errors\": %lu, \"broken_streams\": %lu, \"chunks\": %lu, \"body_bytes\": %lu,"
           " \"p50_us\": %.1f, \"p99_us\": %.1f, \"first_p50_us\": %.1f, \"first_p99_us\": %.1f}\n",
           loop, calls, due, wanted - idle_count, (last_answer_ns - started_ns) / 1000, not_2xx, socket_errors,
           broken_streams, events_seen, body_bytes, quantile_us(&latency, 0.5), quantile_us(&latency, 0.99),
           quantile_us(&first_chunk, 0.5), quantile_us(&first_chunk, 0.99));
}

int main(int argc, char **argv) {
    static const struct option known[] = {{"connections", 1, NULL, 'c'}, {"seconds", 1, NULL, 's'},
                                          {"rate", 1, NULL, 'r'}, {"stream", 0, NULL, 'e'},
                                          {"header", 1, NULL, 'h'}, {NULL, 0, NULL, 0}};
    static char headers[4096];
    int wanted = 32, option;
    double seconds = 1, rate = 0;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        if (option == 'c') wanted = atoi(optarg);
        else if (option == 's') seconds = atof(optarg);
        else if (option == 'r') rate = atof(optarg);
        else if (option == 'e') streams = 1;
        else if (option == 'h' && strlen(headers) + strlen(optarg) + 3 < sizeof headers)
            strcat(strcat(headers, optarg), "\r\n");
        else return 2;
    }
    if (argc - optind != 3 || wanted < 1 || wanted > MAX_CONNECTIONS) {
        fprintf(stderr, "usage: load [--connections 1..%d] [--seconds S] [--rate R] [--stream] [--header LINE]"
                " PORT PATH BODY_FILE\n", MAX_CONNECTIONS);
        return 2;
    }
    port = atoi(argv[optind]);
    make_request(argv[optind + 1], argv[optind + 2], headers);
    const char *loop = wire_start();
    for (int i = 0; i < wanted; i++) {
        connections[i].fd = -1;
        idle[idle_count++] = i;
        open_connection(&connections[i]);
    }
    started_ns = last_answer_ns = now_ns();
    ends_ns = started_ns + (uint64_t)(seconds * 1e9);
    interval_ns = rate > 0 ? (uint64_t)(1e9 / rate) : 0;
    run(wanted);
    print_report(wanted, interval_ns ? (ends_ns - started_ns + interval_ns - 1) / interval_ns : calls, loop);
    return 0;
}
