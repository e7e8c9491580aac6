/* The lower limit of a fan-out: one thread, `send` of one frame on each socket for each message.

   fanout CLIENTS MESSAGES RATE SIZE: prints its port, waits for the clients and for a line on its input, sends,
   and prints what it took. RATE is messages a second. */
#include "common.h"

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    int clients = atoi(argv[1]), size = atoi(argv[4]);
    int64_t messages = atoll(argv[2]), gap = 1000000000 / atoll(argv[3]);
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in address = loopback(0);
    socklen_t length = sizeof address;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 1024)) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    int *fds = calloc((size_t)clients, sizeof *fds);
    for (int i = 0; i < clients; i++) {
        if ((fds[i] = accept(listener, NULL, NULL)) < 0) die("accept");
        no_delay(fds[i]);
    }
    char line[16], *frame = malloc((size_t)size + 256);
    if (!fgets(line, sizeof line, stdin)) return 1;
    static const char envelope[] = "[null,null,\"bench\",\"tick\",";
    int64_t begun = now_ns();
    double cpu = cpu_seconds();
    for (int64_t n = 0; n < messages; n++) {
        sleep_until(begun + n * gap);
        char *body = frame + 4;
        int used = (int)sizeof envelope - 1;
        memcpy(body, envelope, (size_t)used);
        used += payload(body + used, n, now_ns(), size);
        body[used++] = ']';
        char *start = used < 126 ? frame + 2 : frame;
        start[0] = (char)0x81;
        if (used < 126) {
            start[1] = (char)used;
        } else {
            start[1] = 126;
            start[2] = (char)(used >> 8);
            start[3] = (char)(used & 255);
        }
        size_t total = (size_t)(body + used - start);
        for (int i = 0; i < clients; i++) {
            for (size_t done = 0; done < total;) {
                ssize_t sent = send(fds[i], start + done, total - done, MSG_NOSIGNAL);
                if (sent < 0) die("send");
                done += (size_t)sent;
            }
        }
    }
    cpu = cpu_seconds() - cpu;
    printf("{\"cpu_seconds\": %.6f, \"seconds\": %.6f}\n", cpu, (double)(now_ns() - begun) / 1e9);
    fflush(stdout);
    /* The clients read to the end before the connections go. */
    if (!fgets(line, sizeof line, stdin)) return 0;
    return 0;
}
