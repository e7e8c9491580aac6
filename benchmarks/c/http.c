/* Requests over keep-alive connections, each with one request at a time.

   http PORT CONNECTIONS REQUESTS: the request's bytes come on its input; prints what the answers took. */
#include "common.h"

struct connection {
    int fd;
    int64_t began;
    char head[4096];
    size_t have;   /* of the head */
    int64_t left;  /* of the body; -1 while the head is read, CHUNKED for a body in chunks */
    char last[5];  /* the last bytes of a body in chunks */
};

#define CHUNKED INT64_MAX

static char request[65536], scrap[262144];
static size_t request_size;

static void ask(struct connection *it) {
    it->have = 0;
    it->left = -1;
    it->began = now_ns();
    if (send(it->fd, request, request_size, MSG_NOSIGNAL) != (ssize_t)request_size) die("send");
}

/* Answers whether these bytes of a body in chunks end it: nothing follows, as one request is sent at a time. */
static int ends(struct connection *it, const char *data, size_t size) {
    size_t kept = size < sizeof it->last ? sizeof it->last - size : 0;
    memmove(it->last, it->last + sizeof it->last - kept, kept);
    memcpy(it->last + kept, data + size - (sizeof it->last - kept), sizeof it->last - kept);
    return !memcmp(it->last, "0\r\n\r\n", sizeof it->last);
}

/* Reads what is there; answers whether the response is complete. */
static int hear(struct connection *it) {
    for (;;) {
        int in_head = it->left < 0;
        ssize_t got = in_head ? recv(it->fd, it->head + it->have, sizeof it->head - it->have, MSG_DONTWAIT)
                              : recv(it->fd, scrap, sizeof scrap, MSG_DONTWAIT);
        if (got < 0 && errno == EAGAIN) return 0;
        if (got <= 0) die("the server closed the connection");
        if (in_head) {
            it->have += (size_t)got;
            char *stop = memmem(it->head, it->have, "\r\n\r\n", 4);
            if (!stop) continue;
            *stop = 0;
            if (memcmp(it->head + 9, "200", 3)) {
                fprintf(stderr, "answered: %s\n", it->head);
                exit(1);
            }
            size_t rest = it->have - (size_t)(stop + 4 - it->head);
            char *length = strcasestr(it->head, "\r\ncontent-length:");
            if (!length) {
                if (!strcasestr(it->head, "\r\ntransfer-encoding: chunked")) die("neither a length nor chunks");
                it->left = CHUNKED;
                memset(it->last, 0, sizeof it->last);
                if (ends(it, stop + 4, rest)) return 1;
                continue;
            }
            it->left = atoll(length + 17) - (int64_t)rest;
        } else if (it->left == CHUNKED) {
            if (ends(it, scrap, (size_t)got)) return 1;
        } else {
            it->left -= got;
        }
        if (it->left == 0) return 1;
        if (it->left < 0) die("more than its content-length");
    }
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int port = atoi(argv[1]), count = atoi(argv[2]);
    int64_t total = atoll(argv[3]), asked = 0, answered = 0;
    request_size = fread(request, 1, sizeof request, stdin);
    int epoll = epoll_create1(0);
    struct connection *all = calloc((size_t)count, sizeof *all);
    struct epoll_event events[256];
    for (int i = 0; i < count; i++) {
        all[i].fd = connect_to(port);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        epoll_ctl(epoll, EPOLL_CTL_ADD, all[i].fd, &event);
    }
    int64_t begun = now_ns();
    for (int i = 0; i < count && asked < total; i++, asked++) ask(&all[i]);
    while (answered < total) {
        int ready = epoll_wait(epoll, events, 256, 30000);
        if (ready <= 0) die("no answer within 30 s");
        for (int i = 0; i < ready; i++) {
            struct connection *it = events[i].data.ptr;
            if (!hear(it)) continue;
            count_latency(now_ns() - it->began);
            answered++;
            if (asked < total) {
                asked++;
                ask(it);
            }
        }
    }
    printf("{\"seconds\": %.6f, \"cpu_seconds\": %.6f, ", (double)(now_ns() - begun) / 1e9, cpu_seconds());
    print_percentiles();
    printf("}\n");
    return 0;
}
