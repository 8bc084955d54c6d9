/* TCP input and output for a program of one thread, by io_uring, or by epoll if io_uring is refused.
 *
 * Load and upstream share a core, so their own cost limits what they can measure: io_uring submits many sends and
 * receives in one system call. BENCH_LOOP=epoll in the environment selects epoll.
 *
 * The program defines the four functions below; only wire_wait calls them.
 */
#ifndef WIRE_H
#define WIRE_H
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FDS = 16384 };
static const uint64_t NEVER = UINT64_MAX;

static void on_connection(int fd);                             /* accepted by wire_listen; not watched yet */
static void on_bytes(int fd, const char *data, size_t length); /* data is valid until it returns */
static void on_end(int fd);                                    /* the peer disconnected; the program closes */
static void on_sent(int fd);                                   /* a send with notification is complete */

static void die(const char *what) {
    perror(what);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The time left; 0 when it is over. */
static struct timespec time_until(uint64_t until_ns) {
    uint64_t now = now_ns(), left = until_ns > now ? until_ns - now : 0;
    return (struct timespec){(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
}

#include "wire_epoll.h"
#include "wire_uring.h"

static int by_uring;

/* Returns the interface: "io_uring" or "epoll". */
static const char *wire_start(void) {
    const char *wanted = getenv("BENCH_LOOP");
    by_uring = !(wanted && !strcmp(wanted, "epoll")) && uring_start();
    if (!by_uring) epoll_start();
    return by_uring ? "io_uring" : "epoll";
}

__attribute__((unused)) static void wire_listen(int fd) {
    if (by_uring) uring_listen(fd);
    else epoll_listen(fd);
}

static void wire_watch(int fd) {
    if (fd >= MAX_FDS) die("too many connections");
    if (by_uring) uring_watch(fd);
    else epoll_watch(fd);
}

/* Sends all bytes, after earlier sends. They must stay unchanged; the next send of a connection must wait for on_sent,
 * unless it is too small to fill the socket. on_end follows a failed send. */
static void wire_send(int fd, const char *data, size_t length, int tell) {
    if (by_uring) uring_send(fd, data, length, tell);
    else epoll_send(fd, data, length, tell);
}

static void wire_close(int fd) {
    if (by_uring) uring_close(fd);
    else epoll_close(fd);
}

/* Wait for an event or until a time of now_ns, or not at all (0); then call back for all events. */
static void wire_wait(uint64_t until_ns) {
    if (by_uring) uring_wait(until_ns);
    else epoll_wait_once(until_ns);
}

#endif
