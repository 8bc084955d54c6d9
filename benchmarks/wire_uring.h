/* wire.h by io_uring (io_uring_setup(2), Linux 6.1 or newer): one system call for all sends and receives.
 *
 * Without liburing, which is not part of a C tool chain; the kernel's headers come with the C library's.
 */
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { SQ_ENTRIES = 4096, CQ_ENTRIES = 16384, BUFFERS = 256, BUFFER_BYTES = 4096 };
typedef enum { ACCEPT, RECEIVE, SEND, UNTOLD_SEND } Kind;

static int ring_fd;
static unsigned *sq_head, *sq_tail, sq_next, *cq_head, *cq_tail;
static struct io_uring_sqe *sqes;
static struct io_uring_cqe *cqes;
static struct io_uring_buf_ring *buffers;
static char *buffer_bytes;
static uint16_t buffers_tail;
/* How often a descriptor was closed: completions for an earlier use of its number are ignored. */
static uint32_t lives[MAX_FDS];

static int uring_map(const struct io_uring_params *p) {
    size_t rings = p->sq_off.array + p->sq_entries * sizeof(unsigned);
    size_t completions = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
    if (completions > rings) rings = completions;
    int way = PROT_READ | PROT_WRITE, kind = MAP_SHARED | MAP_POPULATE;
    char *ring = mmap(NULL, rings, way, kind, ring_fd, IORING_OFF_SQ_RING);
    sqes = mmap(NULL, p->sq_entries * sizeof *sqes, way, kind, ring_fd, IORING_OFF_SQES);
    buffers = mmap(NULL, BUFFERS * sizeof(struct io_uring_buf), way, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ring == MAP_FAILED || sqes == MAP_FAILED || buffers == MAP_FAILED) return 0;
    sq_head = (unsigned *)(ring + p->sq_off.head);
    sq_tail = (unsigned *)(ring + p->sq_off.tail);
    cq_head = (unsigned *)(ring + p->cq_off.head);
    cq_tail = (unsigned *)(ring + p->cq_off.tail);
    cqes = (struct io_uring_cqe *)(ring + p->cq_off.cqes);
    for (unsigned i = 0; i < p->sq_entries; i++) ((unsigned *)(ring + p->sq_off.array))[i] = i;
    return 1;
}

static int uring_share_buffers(void) {
    struct io_uring_buf_reg group = {.ring_addr = (uint64_t)(uintptr_t)buffers, .ring_entries = BUFFERS};
    return !syscall(__NR_io_uring_register, ring_fd, IORING_REGISTER_PBUF_RING, &group, 1);
}

static void give_buffer(unsigned id) {
    struct io_uring_buf *slot = &buffers->bufs[buffers_tail++ % BUFFERS];
    slot->addr = (uint64_t)(uintptr_t)(buffer_bytes + id * BUFFER_BYTES);
    slot->len = BUFFER_BYTES;
    slot->bid = (uint16_t)id;
    __atomic_store_n(&buffers->tail, buffers_tail, __ATOMIC_RELEASE);
}

/* 0: the kernel has no io_uring or refuses it. */
static int uring_start(void) {
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE,
        .cq_entries = CQ_ENTRIES};
    ring_fd = (int)syscall(__NR_io_uring_setup, SQ_ENTRIES, &params);
    if (ring_fd < 0) return 0;
    buffer_bytes = malloc(BUFFERS * BUFFER_BYTES);
    if (!buffer_bytes) die("malloc");
    if (!uring_map(&params) || !uring_share_buffers()) {
        close(ring_fd);
        return 0;
    }
    for (unsigned id = 0; id < BUFFERS; id++) give_buffer(id);
    return 1;
}

/* Submit all entries; wait for a completion or a time. */
static void uring_enter(int wait, uint64_t until_ns) {
    unsigned submitted = sq_next - __atomic_load_n(sq_head, __ATOMIC_ACQUIRE), flags = IORING_ENTER_GETEVENTS;
    struct timespec patience = time_until(until_ns);
    struct io_uring_getevents_arg limit = {.ts = (uint64_t)(uintptr_t)&patience};
    __atomic_store_n(sq_tail, sq_next, __ATOMIC_RELEASE);
    if (wait && until_ns != NEVER) flags |= IORING_ENTER_EXT_ARG;
    void *argument = flags & IORING_ENTER_EXT_ARG ? &limit : NULL;
    size_t size = argument ? sizeof limit : 0;
    long done = syscall(__NR_io_uring_enter, ring_fd, submitted, wait ? 1 : 0, flags, argument, size);
    if (done < 0 && errno != ETIME && errno != EINTR && errno != EBUSY && errno != EAGAIN) die("io_uring_enter");
}

static struct io_uring_sqe *ask_for(uint8_t what, int fd, Kind kind) {
    while (sq_next - __atomic_load_n(sq_head, __ATOMIC_ACQUIRE) == SQ_ENTRIES) uring_enter(0, NEVER);
    struct io_uring_sqe *sqe = &sqes[sq_next++ % SQ_ENTRIES];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = what;
    sqe->fd = fd;
    sqe->user_data = (uint64_t)lives[fd] << 32 | (uint64_t)kind << 24 | (uint64_t)fd;
    return sqe;
}

static void uring_listen(int fd) {
    struct io_uring_sqe *sqe = ask_for(IORING_OP_ACCEPT, fd, ACCEPT);
    sqe->ioprio = IORING_ACCEPT_MULTISHOT;
    sqe->accept_flags = SOCK_CLOEXEC;
}

static void uring_watch(int fd) {
    struct io_uring_sqe *sqe = ask_for(IORING_OP_RECV, fd, RECEIVE);
    sqe->ioprio = IORING_RECV_MULTISHOT | IORING_RECVSEND_POLL_FIRST;
    sqe->flags = IOSQE_BUFFER_SELECT;
}

static void uring_send(int fd, const char *data, size_t length, int tell) {
    struct io_uring_sqe *sqe = ask_for(IORING_OP_SEND, fd, tell ? SEND : UNTOLD_SEND);
    sqe->addr = (uint64_t)(uintptr_t)data;
    sqe->len = (uint32_t)length;
    sqe->msg_flags = MSG_NOSIGNAL | MSG_WAITALL; /* the kernel sends the rest of a short send before it completes */
    sqe->flags = tell ? 0 : IOSQE_CQE_SKIP_SUCCESS;
}

/* Operations in progress end with the connection; unsubmitted ones would affect the next use of its number. */
static void uring_close(int fd) {
    for (unsigned at = __atomic_load_n(sq_head, __ATOMIC_ACQUIRE); at != sq_next; at++) {
        struct io_uring_sqe *sqe = &sqes[at % SQ_ENTRIES];
        if (sqe->fd == fd) *sqe = (struct io_uring_sqe){.opcode = IORING_OP_NOP, .user_data = sqe->user_data};
    }
    lives[fd]++;
    shutdown(fd, SHUT_RDWR);
    close(fd);
}

static void uring_received(int fd, const struct io_uring_cqe *cqe) {
    if (cqe->res > 0) {
        unsigned id = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
        uint32_t life = lives[fd];
        on_bytes(fd, buffer_bytes + id * BUFFER_BYTES, (size_t)cqe->res);
        if (!(cqe->flags & IORING_CQE_F_MORE) && life == lives[fd]) uring_watch(fd);
    } else if (cqe->res == -ENOBUFS) {
        uring_watch(fd); /* returned below */
    } else {
        on_end(fd);
    }
}

static void uring_happened(const struct io_uring_cqe *cqe) {
    int fd = (int)(cqe->user_data & 0xffffff);
    Kind kind = (Kind)(cqe->user_data >> 24 & 0xff);
    if (cqe->user_data >> 32 == lives[fd]) {
        if (kind == RECEIVE) {
            uring_received(fd, cqe);
        } else if (kind == ACCEPT) {
            if (cqe->res >= 0) on_connection(cqe->res);
            if (!(cqe->flags & IORING_CQE_F_MORE)) uring_listen(fd);
        } else if (kind == SEND && cqe->res > 0) {
            on_sent(fd);
        }
    }
    if (cqe->flags & IORING_CQE_F_BUFFER) give_buffer(cqe->flags >> IORING_CQE_BUFFER_SHIFT);
}

static void uring_wait(uint64_t until_ns) {
    unsigned head = *cq_head;
    int there = head != __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE);
    uring_enter(!there && until_ns > 0, until_ns);
    unsigned tail = __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE);
    for (; head != tail; head++) uring_happened(&cqes[head % CQ_ENTRIES]);
    __atomic_store_n(cq_head, head, __ATOMIC_RELEASE);
}
