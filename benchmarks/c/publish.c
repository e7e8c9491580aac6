/* A publisher: publish REDIS_PORT CHANNEL MESSAGES RATE SIZE BURST [TOPICS [FILE]].

   With TOPICS the "%d" in CHANNEL is the number of the message modulo TOPICS. With FILE, which holds a JSON object,
   a message is that object with its number and the time in front, and SIZE is its bytes. BURST messages go out in one write, RATE bursts a second. Each message carries its number and the time. */
#include "common.h"

static int redis;
static int64_t answered;

static void read_answers(int flags) {
    char answer[65536];
    ssize_t got = recv(redis, answer, sizeof answer, flags);
    for (ssize_t i = 0; i < got; i++) answered += answer[i] == '\n';
    if (got == 0) die("redis has gone");
}

int main(int argc, char **argv) {
    if (argc < 7 || argc > 9) return 2;
    int topics = argc > 7 ? atoi(argv[7]) : 1;
    const char *channel = argv[2];
    int64_t messages = atoll(argv[3]);
    double gap = 1e9 / atof(argv[4]);
    int size = atoi(argv[5]), burst = atoi(argv[6]);
    redis = connect_to(atoi(argv[1]));
    char *object = NULL, name[512];
    size_t rest = 0;
    if (argc == 9) {
        FILE *in = fopen(argv[8], "r");
        if (!in) die(argv[8]);
        object = malloc((size_t)size);
        rest = fread(object, 1, (size_t)size, in);
        fclose(in);
    }
    char *out = malloc((size_t)burst * ((size_t)size + 256)), *body = malloc((size_t)size + 256);
    int64_t begun = now_ns(), n = 0;
    double cpu = cpu_seconds();
    for (int64_t round = 0; n < messages; round++) {
        sleep_until(begun + (int64_t)((double)round * gap));
        size_t used = 0;
        for (int i = 0; i < burst && n < messages; i++, n++) {
            snprintf(name, sizeof name, channel, (int)(n % topics));
            int length = payload(body, n, now_ns(), object ? 0 : size);
            if (object) {
                /* The file's members stand behind the number and the time, and take the place of "z". */
                length = sprintf(body, "{\"n\":%lld,\"t\":%lld,", (long long)n, (long long)now_ns());
                memcpy(body + length, object + 1, rest - 1);
                length += (int)rest - 1;
            }
            used += (size_t)sprintf(out + used, "*3\r\n$7\r\nPUBLISH\r\n$%zu\r\n%s\r\n$%d\r\n", strlen(name), name,
                                    length);
            memcpy(out + used, body, (size_t)length);
            used += (size_t)length;
            memcpy(out + used, "\r\n", 2);
            used += 2;
        }
        for (size_t done = 0; done < used;) {
            ssize_t sent = send(redis, out + done, used - done, MSG_NOSIGNAL);
            if (sent < 0) die("send");
            done += (size_t)sent;
        }
        read_answers(MSG_DONTWAIT);
    }
    double seconds = (double)(now_ns() - begun) / 1e9;
    while (answered < n) read_answers(0);
    printf("{\"seconds\": %.6f, \"cpu_seconds\": %.6f}\n", seconds, cpu_seconds() - cpu);
    return 0;
}
