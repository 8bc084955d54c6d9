/* The model that costs nothing: an HTTP/1.1 server on one epoll loop, so that the upstream never is the bottleneck.
 *
 *   upstream PORT ANSWER_FILE
 *
 * Every request is answered with ANSWER_FILE as application/json. A body with "stream": true is answered with a stream
 * of 100 chunks in OpenAI's form, each an HTTP chunk and a write of its own, the last two with the finish reason and
 * the usage, and [DONE] after them. "pace_us=N" anywhere in the body sends one chunk each N microseconds; without it
 * the streams take turns, a chunk each, as fast as they are taken.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { CHUNKS = 100, PIECES = CHUNKS + 2, MAX_FDS = 16384, BUFFER_BYTES = 65536, CHUNK_BYTES = 512 };

typedef struct Connection {
    int fd;
    int piece;           /* next piece of the stream, -1 when there is none */
    size_t piece_sent;   /* bytes of that piece that have gone */
    int blocked;         /* waits until the socket takes more */
    uint64_t pace_ns;
    uint64_t due_ns;
    struct Connection *next; /* in the queue of streams */
    size_t filled;
    char buffer[BUFFER_BYTES];
} Connection;

typedef struct {
    char *bytes;
    size_t length;
} Text;

typedef struct {
    Connection *first, *last;
} Queue;

static Connection *connections[MAX_FDS];
static Text answer;
static Text pieces[PIECES];
static Queue paced, unpaced;
static int loop_fd, timer_fd;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void push(Queue *queue, Connection *c) {
    c->next = NULL;
    if (queue->last) queue->last->next = c;
    else queue->first = c;
    queue->last = c;
}

static Connection *pop(Queue *queue) {
    Connection *c = queue->first;
    queue->first = c->next;
    if (!queue->first) queue->last = NULL;
    return c;
}

static void take_out(Queue *queue, Connection *wanted) {
    Queue rest = {NULL, NULL};
    while (queue->first) {
        Connection *c = pop(queue);
        if (c != wanted) push(&rest, c);
    }
    *queue = rest;
}

static void watch(Connection *c, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.fd = c->fd};
    if (epoll_ctl(loop_fd, operation, c->fd, &event)) die("epoll_ctl");
}

static void hang_up(Connection *c) {
    if (c->piece >= 0 && !c->blocked) take_out(c->pace_ns ? &paced : &unpaced, c);
    connections[c->fd] = NULL;
    close(c->fd);
    free(c);
}

/* What the stream consists of: a head, CHUNKS events framed as HTTP chunks, and the end. */
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
    /* The head goes with the first chunk, as the end of the body goes with the last. */
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
    char body[BUFFER_BYTES];
    size_t length = fread(body, 1, sizeof body, file);
    fclose(file);
    while (length && (body[length - 1] == '\n' || body[length - 1] == '\r')) length--;
    answer.bytes = malloc(length + 256);
    int head = snprintf(answer.bytes, 256, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                        "Content-Length: %zu\r\n\r\n", length);
    memcpy(answer.bytes + head, body, length);
    answer.length = (size_t)head + length;
}

/* 1: the piece has gone; 0: the socket is full; -1: the client has gone. */
static int send_piece(Connection *c) {
    Text *piece = &pieces[c->piece];
    ssize_t sent = send(c->fd, piece->bytes + c->piece_sent, piece->length - c->piece_sent, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN ? 0 : -1;
    c->piece_sent += (size_t)sent;
    if (c->piece_sent < piece->length) return 0;
    c->piece++;
    c->piece_sent = 0;
    return 1;
}

/* One turn of a stream that is in no queue: a chunk, and with the last one the end of the body. */
static void advance(Connection *c) {
    int done;
    do done = send_piece(c);
    while (done == 1 && c->piece >= CHUNKS && c->piece < PIECES);
    if (done < 0) {
        c->piece = -1;
        hang_up(c);
    } else if (done == 0) {
        c->blocked = 1;
        watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    } else if (c->piece == PIECES) {
        c->piece = -1;
    } else if (c->pace_ns) {
        c->due_ns += c->pace_ns;
        push(&paced, c);
    } else {
        push(&unpaced, c);
    }
}

static void begin_stream(Connection *c, const char *pace, size_t length) {
    const char *mark = memmem(pace, length, "pace_us=", 8);
    c->pace_ns = mark ? strtoull(mark + 8, NULL, 10) * 1000u : 0;
    c->due_ns = now_ns();
    c->piece = 0;
    c->piece_sent = 0;
    advance(c);
}

static const char *header(const char *head, const char *end, const char *name) {
    size_t length = strlen(name);
    for (const char *line = head; (line = memchr(line, '\n', (size_t)(end - line)));) {
        line++;
        if ((size_t)(end - line) > length && !strncasecmp(line, name, length)) return line + length;
    }
    return NULL;
}

/* Length of the whole request at the front of the buffer, 0 while it is not all there. */
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

static int send_answer(Connection *c) {
    for (size_t sent = 0; sent < answer.length;) {
        ssize_t went = send(c->fd, answer.bytes + sent, answer.length - sent, MSG_NOSIGNAL);
        /* An answer of 1 KB always fits: each client waits for one before it asks for the next. */
        if (went < 0) return -1;
        sent += (size_t)went;
    }
    return 0;
}

static int wants_stream(const char *body, size_t length) {
    return memmem(body, length, "\"stream\":true", 13) || memmem(body, length, "\"stream\": true", 14);
}

/* The last whole request that wanted an answer and no stream: the load asks the same again and again. */
static Text usual;

static int is_usual(const Connection *c) {
    return c->filled == usual.length && c->piece < 0 && !memcmp(c->buffer, usual.bytes, usual.length);
}

static void serve_request(Connection *c) {
    char *body;
    if (is_usual(c)) {
        c->filled = 0;
        if (send_answer(c)) hang_up(c);
        return;
    }
    size_t length = request_length(c, &body);
    if (!length || c->piece >= 0) return;
    size_t body_length = length - (size_t)(body - c->buffer);
    c->filled -= length;
    if (wants_stream(body, body_length)) {
        begin_stream(c, body, body_length);
        return;
    }
    if (!c->filled) {
        usual.bytes = realloc(usual.bytes, length);
        usual.length = length;
        memcpy(usual.bytes, c->buffer, length);
    }
    if (send_answer(c)) hang_up(c);
}

static void on_readable(Connection *c) {
    ssize_t got = recv(c->fd, c->buffer + c->filled, BUFFER_BYTES - c->filled, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        hang_up(c);
        return;
    }
    c->filled += (size_t)got;
    serve_request(c);
}

static void on_event(const struct epoll_event *event) {
    Connection *c = connections[event->data.fd];
    if (!c) return;
    if (c->blocked && event->events & EPOLLOUT) {
        c->blocked = 0;
        watch(c, EPOLLIN, EPOLL_CTL_MOD);
        advance(c);
    } else if (event->events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
        on_readable(c);
    }
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        Connection *c = calloc(1, sizeof *c);
        if (!c) die("calloc");
        c->fd = fd;
        c->piece = -1;
        connections[fd] = c;
        watch(c, EPOLLIN, EPOLL_CTL_ADD);
    }
}

static void advance_all_unpaced(void) {
    Queue turn = unpaced;
    unpaced = (Queue){NULL, NULL};
    while (turn.first) advance(pop(&turn));
}

/* Streams of one pace are due in the order in which they were queued. */
static void advance_due(void) {
    uint64_t now = now_ns();
    while (paced.first && paced.first->due_ns <= now) advance(pop(&paced));
}

static void set_timer(void) {
    static uint64_t set_for;
    uint64_t due = paced.first ? paced.first->due_ns : 0;
    if (due == set_for) return;
    struct itimerspec at = {.it_value = {(time_t)(due / 1000000000u), (long)(due % 1000000000u)}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
    set_for = due;
}

static int listen_on(int port) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    /* A pacing one, where it is the system's default, would set a timer for each answer on loopback. */
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
    loop_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    int listener = listen_on(atoi(argv[1]));
    for (int i = 0; i < 2; i++) {
        int fd = i ? timer_fd : listener;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        if (epoll_ctl(loop_fd, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
    }
    for (;;) {
        struct epoll_event events[256];
        set_timer();
        int count = epoll_wait(loop_fd, events, 256, unpaced.first ? 0 : -1);
        if (count < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < count; i++) {
            uint64_t expirations;
            if (events[i].data.fd == listener) accept_all(listener);
            else if (events[i].data.fd != timer_fd) on_event(&events[i]);
            else if (read(timer_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN) die("timerfd");
        }
        advance_due();
        advance_all_unpaced();
    }
}
