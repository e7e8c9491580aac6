/* The lower limit of a fan-out: one thread, `send` of one frame on each socket for each message.

   fanout CLIENTS MESSAGES RATE SIZE [PAUSE]: prints its port, waits for the clients and for a line on its input, sends,
   and prints what it took. RATE is messages a second. With PAUSE it waits so
   many microseconds after each round, and then sends all messages that are due in one write for each client. */
#include "common.h"

/* Bytes of one write at most. */
#define ROUND (1 << 22)

/* Writes the frame of a message, and returns its bytes. */
static size_t put_frame(char *frame, int64_t n, int64_t at, int size) {
    static const char envelope[] = "[null,null,\"bench\",\"tick\",";
    char *body = frame + 4;
    int used = (int)sizeof envelope - 1;
    memcpy(body, envelope, (size_t)used);
    used += payload(body + used, n, at, size);
    body[used++] = ']';
    frame[0] = (char)0x81;
    if (used < 126) {
        frame[1] = (char)used;
        memmove(frame + 2, body, (size_t)used);
        return (size_t)used + 2;
    }
    frame[1] = 126;
    frame[2] = (char)(used >> 8);
    frame[3] = (char)(used & 255);
    return (size_t)used + 4;
}

int main(int argc, char **argv) {
    if (argc != 5 && argc != 6) return 2;
    int64_t pause = argc == 6 ? atoll(argv[5]) * 1000 : 0, rested = 0;
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
    char line[16], *round = malloc(ROUND);
    if (!fgets(line, sizeof line, stdin)) return 1;
    int64_t begun = now_ns();
    double cpu = cpu_seconds();
    for (int64_t n = 0; n < messages;) {
        int64_t due = begun + n * gap;
        sleep_until(due > rested ? due : rested);
        size_t gathered = 0;
        do {
            gathered += put_frame(round + gathered, n, pause ? begun + n * gap : now_ns(), size);
            n++;
        } while (pause && n < messages && begun + n * gap <= now_ns() && gathered < ROUND - (size_t)size - 256);
        for (int i = 0; i < clients; i++) {
            for (size_t done = 0; done < gathered;) {
                ssize_t sent = send(fds[i], round + done, gathered - done, MSG_NOSIGNAL);
                if (sent < 0) die("send");
                done += (size_t)sent;
            }
        }
        rested = now_ns() + pause;
    }
    cpu = cpu_seconds() - cpu;
    printf("{\"cpu_seconds\": %.6f, \"seconds\": %.6f}\n", cpu, (double)(now_ns() - begun) / 1e9);
    fflush(stdout);
    /* The clients read to the end before the connections go. */
    if (!fgets(line, sizeof line, stdin)) return 0;
    return 0;
}
