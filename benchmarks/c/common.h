/* What the load programs share: clocks, histograms, sockets. */
#ifndef COMMON_H
#define COMMON_H
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static inline void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* Nanoseconds of the clock that all processes of the machine share. */
static inline int64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
}

static inline void sleep_until(int64_t ns) {
    struct timespec at = {ns / 1000000000, ns % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR) {
    }
}

static inline double cpu_seconds(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)used.ru_utime.tv_sec + (double)used.ru_stime.tv_sec +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* Latencies in steps of 10 us up to 20 s; what takes longer counts as the last step. */
#define STEPS 2000000
static uint32_t histogram[STEPS];
static uint64_t counted;

static inline void count_latency(int64_t ns) {
    int64_t step = ns < 0 ? 0 : ns / 10000;
    histogram[step < STEPS ? step : STEPS - 1]++;
    counted++;
}

static inline double percentile_ms(double share) {
    uint64_t wanted = (uint64_t)((double)counted * share), seen = 0;
    for (int step = 0; step < STEPS; step++) {
        seen += histogram[step];
        if (seen > wanted) return (step + 1) / 100.0;
    }
    return 0.0;
}

static inline void print_percentiles(void) {
    printf("\"p50_ms\": %.2f, \"p90_ms\": %.2f, \"p99_ms\": %.2f, \"max_ms\": %.2f", percentile_ms(0.50),
           percentile_ms(0.90), percentile_ms(0.99), percentile_ms(0.9999999));
}

static inline void clear_latencies(void) {
    memset(histogram, 0, sizeof histogram);
    counted = 0;
}

static inline struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static inline void no_delay(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static inline void never_block(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

static inline int connect_to(int port) {
    struct sockaddr_in address = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    no_delay(fd);
    return fd;
}

/* {"n":number,"t":nanoseconds,"z":"zzz..."} of exactly `size` bytes, or the shortest there is. The keys stand
   in the order in which a server that sorts them would put them. */
static inline int payload(char *to, int64_t number, int64_t at, int size) {
    int length = sprintf(to, "{\"n\":%lld,\"t\":%lld,\"z\":\"", (long long)number, (long long)at);
    int fill = size - length - 2;
    if (fill > 0) {
        memset(to + length, 'z', (size_t)fill);
        length += fill;
    }
    memcpy(to + length, "\"}", 2);
    return length + 2;
}
#endif
