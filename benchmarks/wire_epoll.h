/* wire.h by epoll: one system call per send and per receive. */
#include <sys/epoll.h>
#include <sys/timerfd.h>

typedef struct {
    const char *data; /* the rest of a send that filled the socket */
    size_t left;
    int tell;
} Unsent;

static Unsent unsent[MAX_FDS];
static int sent[MAX_FDS], sent_count; /* to call on_sent for */
static int epoll_fd, epoll_timer, epoll_listener = -1;
static uint64_t epoll_timer_at = UINT64_MAX;

static void epoll_change(int fd, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll_fd, operation, fd, &event)) die("epoll_ctl");
}

static void epoll_start(void) {
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    epoll_timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (epoll_fd < 0 || epoll_timer < 0) die("epoll_create1");
    epoll_change(epoll_timer, EPOLLIN, EPOLL_CTL_ADD);
}

/* epoll_wait has a timeout in milliseconds, and epoll_pwait2 adds 50 µs of timer slack. */
static void epoll_set_timer(uint64_t until_ns) {
    if (until_ns == epoll_timer_at) return;
    struct itimerspec at = {0}; /* never */
    if (until_ns != NEVER) {
        at.it_value.tv_sec = (time_t)(until_ns / 1000000000u);
        at.it_value.tv_nsec = (long)(until_ns % 1000000000u);
    }
    if (timerfd_settime(epoll_timer, TFD_TIMER_ABSTIME, &at, NULL)) die("timerfd_settime");
    epoll_timer_at = until_ns;
}

static void epoll_timer_rang(void) {
    uint64_t expirations;
    if (read(epoll_timer, &expirations, sizeof expirations) < 0 && errno != EAGAIN) die("timerfd");
    epoll_timer_at = NEVER;
}

static void epoll_listen(int fd) {
    epoll_listener = fd;
    epoll_change(fd, EPOLLIN, EPOLL_CTL_ADD);
}

static void epoll_watch(int fd) {
    unsent[fd] = (Unsent){0};
    epoll_change(fd, EPOLLIN, EPOLL_CTL_ADD);
}

static void epoll_go_on(int fd) {
    Unsent *rest = &unsent[fd];
    ssize_t went = send(fd, rest->data, rest->left, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (went < 0 && errno != EAGAIN) return; /* reading reports the error */
    rest->data += went > 0 ? went : 0;
    rest->left -= went > 0 ? (size_t)went : 0;
    if (!rest->left && rest->tell) sent[sent_count++] = fd;
}

static void epoll_send(int fd, const char *data, size_t length, int tell) {
    unsent[fd] = (Unsent){data, length, tell};
    epoll_go_on(fd);
    if (unsent[fd].left) epoll_change(fd, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
}

static void epoll_close(int fd) {
    for (int i = 0; i < sent_count; i++)
        if (sent[i] == fd) sent[i--] = sent[--sent_count];
    unsent[fd] = (Unsent){0};
    close(fd);
}

static void epoll_accept(void) {
    for (int fd; (fd = accept4(epoll_listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) on_connection(fd);
}

static void epoll_receive(int fd) {
    static char buffer[65536];
    ssize_t got = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got > 0) on_bytes(fd, buffer, (size_t)got);
    else if (got == 0 || errno != EAGAIN) on_end(fd);
}

static void epoll_happened(const struct epoll_event *event) {
    int fd = event->data.fd;
    if (fd == epoll_listener) {
        epoll_accept();
        return;
    }
    if (fd == epoll_timer) {
        epoll_timer_rang();
        return;
    }
    if (event->events & EPOLLOUT && unsent[fd].left) {
        epoll_go_on(fd);
        if (!unsent[fd].left) epoll_change(fd, EPOLLIN, EPOLL_CTL_MOD);
    }
    if (event->events & (EPOLLIN | EPOLLERR | EPOLLHUP)) epoll_receive(fd);
}

static void epoll_tell_of_sent(void) {
    static int telling[MAX_FDS];
    int count = sent_count;
    memcpy(telling, sent, sizeof(int) * (size_t)count);
    sent_count = 0;
    for (int i = 0; i < count; i++) on_sent(telling[i]);
}

static void epoll_wait_once(uint64_t until_ns) {
    struct epoll_event events[256];
    int at_once = sent_count || !until_ns;
    if (!at_once) epoll_set_timer(until_ns);
    int count = epoll_wait(epoll_fd, events, 256, at_once ? 0 : -1);
    if (count < 0 && errno != EINTR) die("epoll_wait");
    for (int i = 0; i < count; i++) epoll_happened(&events[i]);
    epoll_tell_of_sent();
}
