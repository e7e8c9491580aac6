/* Many WebSocket clients in one thread, so that what they cost is not what is measured.

   clients PORT PATH TOPIC TOKEN COUNT WINDOW [hold|recover]: connects COUNT clients, WINDOW at a time, joins each to TOPIC
   with TOKEN, prints the seconds that this took, and reads. PATH "-" is a plain socket: frames come without asking.
   TOPIC "@FILE" has a line with topic and token for each client, and TOKEN is not used.
   For other servers than those of Phoenix TOKEN is "SUBPROTOCOL=REPLY", each may be empty: each client offers the
   subprotocol, sends the token of its line, which is hexadecimal, as one binary frame, and has joined once a frame
   has REPLY (hexadecimal, too). Token "-" sends nothing: the upgrade is the join.
   With "hold" the clients connect, and join at the command "join"; each of the two prints its seconds.
   With "recover" they ask for positions, and join again with the last one; they come back at the times of phoenix.js.
   Numbers of messages must then follow one another, and "return" ends for a client at its first position after the
   join: behind the last missed message.

   On its input: "join" joins all, WINDOW at a time; "reset" forgets what was counted; "report" prints it; "push
   MESSAGES RATE BATCH" has the clients push MESSAGES in all, RATE a second, BATCH in one write; "return" waits until
   the server has closed all clients and they have joined again, 10 ms after the end of each connection and of each
   attempt; "leave" closes all. */
#include "common.h"

/* A push carries its client's number times this, plus how many that client had pushed before. */
#define EACH 10000000

enum { CONNECTING, UPGRADING, HELD, JOINING, JOINED, AWAY, GONE };

struct client {
    int fd, state;
    char *in, *out;
    size_t have, room, out_size, out_done;
    size_t large, left; /* of a frame that is not kept: its bytes, and those that are still to come */
    int64_t messages, last, began, pushed, again;
    int64_t closed; /* when its last joined connection ended */
    int back, tries;
    char position[64];
};

#define RETRY_NS 10000000
/* Milliseconds after which phoenix.js connects again, by attempts without a connection. */
static const int retries[] = {10, 50, 100, 150, 200, 250, 500, 1000, 2000, 5000};
#define RETRIES (int)(sizeof retries / sizeof *retries)

/* Bytes of a payload that are looked at, and of a frame that is kept whole: 10,000 lists of presence fill memory. */
#define LOOK 160
#define KEPT 65536

static struct client *clients;
static char scrap[1 << 20];
static int count, window, epoll, plain, hold, started, upgrades, asked, joined, gone, port;
static const char *path, *topic, *token;
static int64_t messages, disordered, bytes_read, reads, replies, refused;
static int64_t states, differences, presence_bytes, last_presence;
static int64_t begun;
static int64_t push_total, push_sent, push_begun, push_batch;
static double push_gap;
static int next_pusher;
static int returning, returned;
/* Attempts to come back that led to no join, by the place where they ended. */
enum { UNCONNECTED, UNANSWERED_UPGRADE, REFUSED_UPGRADE, MOVED, CUT, REFUSED_JOIN, UNANSWERED_JOIN, PLACES };
static const char *const places[] = {"unconnected", "upgrade_unanswered", "upgrade_refused", "moved",
                                     "cut",         "join_refused",       "join_unanswered"};
static int64_t failures[PLACES];
/* Joined connections that ended without a close frame, and the longest time without one. */
static int64_t broken, longest;
/* Nanoseconds after which phoenix.js gives a join up. */
#define JOIN_NS 10000000000LL
/* Of clients that recover: numbers that did not come, or came again, and joins that were told of missed messages. */
static int recover;
static int64_t skipped, repeated, told_missed;
/* Of a server that does not speak Phoenix: the reply to a greeting, and the subprotocol. */
static int greeting;
static const char *subprotocol = "";
static char greeted[64];
static size_t greeted_size;

/* The lines of a file with topics and tokens. */
static char **topics, **tokens;

static void want(struct client *it, uint32_t events) {
    struct epoll_event event = {.events = events, .data.u32 = (uint32_t)(it - clients)};
    epoll_ctl(epoll, EPOLL_CTL_MOD, it->fd, &event);
}

static void end_at(struct client *it, int place) {
    if (it->state == GONE || it->state == AWAY) return;
    close(it->fd);
    if (returning) {
        if (it->state == JOINED) it->closed = now_ns();
        else failures[place]++;
        returned -= it->back;
        it->back = 0;
        it->state = AWAY;
        it->again = now_ns() + (recover ? retries[it->tries] * 1000000LL : RETRY_NS);
        if (it->tries < RETRIES - 1) it->tries++;
        it->have = it->left = it->out_size = it->out_done = 0;
        return;
    }
    it->state = GONE;
    gone++;
}

/* Ends without a close frame. */
static void end(struct client *it) {
    end_at(it, it->state == CONNECTING ? UNCONNECTED : it->state == UPGRADING ? UNANSWERED_UPGRADE : CUT);
}

static void flush_out(struct client *it) {
    while (it->out_done < it->out_size) {
        ssize_t sent = send(it->fd, it->out + it->out_done, it->out_size - it->out_done, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            if (errno == EAGAIN) {
                want(it, EPOLLIN | EPOLLOUT);
                return;
            }
            end(it);
            return;
        }
        it->out_done += (size_t)sent;
    }
    it->out_size = it->out_done = 0;
    want(it, EPOLLIN);
}

/* A text frame, masked with zeros as the standard allows. */
static size_t frame(char *to, const char *text, size_t length) {
    size_t head = 6;
    to[0] = (char)0x81;
    if (length < 126) {
        to[1] = (char)(0x80 | length);
    } else {
        to[1] = (char)(0x80 | 126);
        to[2] = (char)(length >> 8);
        to[3] = (char)(length & 255);
        head = 8;
    }
    memset(to + head - 4, 0, 4);
    memcpy(to + head, text, length);
    return head + length;
}

static void start(struct client *it) {
    struct sockaddr_in address = loopback(port);
    it->state = CONNECTING;
    it->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (it->fd < 0) die("socket");
    never_block(it->fd);
    no_delay(it->fd);
    it->began = now_ns();
    if (!*it->position) it->last = -1;
    if (connect(it->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) die("connect");
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.u32 = (uint32_t)(it - clients)};
    epoll_ctl(epoll, EPOLL_CTL_ADD, it->fd, &event);
}

static void say(struct client *it, const char *data, size_t size) {
    memcpy(it->out, data, size);
    it->out_size = size;
    it->out_done = 0;
    flush_out(it);
}

static void connected(struct client *it) {
    char request[1024];
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(it->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error && returning) {
        end(it);
        return;
    }
    if (plain) {
        it->state = JOINED;
        joined++;
        want(it, EPOLLIN);
        return;
    }
    char offer[128] = "";
    if (*subprotocol) sprintf(offer, "Sec-WebSocket-Protocol: %s\r\n", subprotocol);
    int length = sprintf(request,
                         "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
                         topics && strchr(path, '%') ? topics[it - clients] : path, port, offer);
    it->state = UPGRADING;
    say(it, request, (size_t)length);
}

static void read_topics(const char *file) {
    char line[4096], name[512], secret[2048];
    FILE *in = fopen(file, "r");
    if (!in) die(file);
    topics = calloc((size_t)count, sizeof *topics);
    tokens = calloc((size_t)count, sizeof *tokens);
    for (int i = 0; i < count; i++) {
        if (!fgets(line, sizeof line, in) || sscanf(line, "%511s %2047s", name, secret) != 2) die("too few topics");
        topics[i] = strdup(name);
        tokens[i] = strdup(secret);
    }
    fclose(in);
}

static size_t unhex(char *to, const char *hex) {
    size_t size = 0;
    for (unsigned byte; sscanf(hex + 2 * size, "%2x", &byte) == 1; size++) to[size] = (char)byte;
    return size;
}

static void join(struct client *it) {
    char text[2048], out[2100];
    if (greeting) {
        it->state = JOINING;
        if (!strcmp(tokens[it - clients], "-")) {
            it->state = JOINED;
            joined++;
            count_latency(now_ns() - it->began);
            return;
        }
        size_t size = frame(out, text, unhex(text, tokens[it - clients]));
        out[0] = (char)0x82;
        say(it, out, size);
        return;
    }
    int length = sprintf(text, "[\"1\",\"1\",\"%s\",\"phx_join\",{\"token\":\"%s\"", topics ? topics[it - clients] : topic,
                         tokens ? tokens[it - clients] : token);
    if (recover) length += sprintf(text + length, ",\"recover\":\"%s\"", it->position);
    length += sprintf(text + length, "}]");
    it->state = JOINING;
    say(it, out, frame(out, text, (size_t)length));
}

static void upgraded(struct client *it) {
    upgrades++;
    it->tries = 0;
    if (!hold) {
        join(it);
        return;
    }
    it->state = HELD;
    count_latency(now_ns() - it->began);
}

/* Counts presence; answers whether it was that. */
static int presence(const char *text, size_t size) {
    const char *name = memmem(text, size < LOOK ? size : LOOK, "\"presence_", 10);
    if (!name) return 0;
    if (name[10] == 's') states++;
    else differences++;
    presence_bytes += (int64_t)size;
    last_presence = now_ns();
    return 1;
}

static void keep_position(struct client *it, const char *text, size_t size, const char *key) {
    const char *found = memmem(text, size, key, strlen(key)), *at = found + strlen(key);
    const char *stop = found ? memchr(at, '"', size - (size_t)(at - text)) : NULL;
    if (!stop || (size_t)(stop - at) >= sizeof it->position) {
        fprintf(stderr, "no position: %.*s\n", (int)size, text);
        exit(1);
    }
    memcpy(it->position, at, (size_t)(stop - at));
    it->position[stop - at] = 0;
}

/* Takes the position behind messages; it ends the return of a client that has been away. */
static void positioned(struct client *it, const char *text, size_t size) {
    keep_position(it, text, size, "\"at\":\"");
    if (!returning || it->back || !it->again) return;
    it->back = 1;
    returned++;
    count_latency(now_ns() - begun);
}

static void count_recovered(struct client *it, int64_t n) {
    if (it->last >= 0 && n > it->last + 1) skipped += n - it->last - 1;
    if (n <= it->last) repeated++;
    else it->last = n;
}

static void heard(struct client *it, const char *text, size_t size) {
    if (it->state == JOINING && greeting) {
        if (memmem(text, size, greeted, greeted_size)) {
            it->state = JOINED;
            joined++;
            count_latency(now_ns() - it->began);
        }
        return;
    }
    if (it->state == JOINING) {
        if (memmem(text, size, "phx_reply", 9)) {
            if (!memmem(text, size, "\"ok\"", 4)) {
                fprintf(stderr, "join refused: %.*s\n", (int)size, text);
                if (!returning) exit(1);
                end_at(it, REFUSED_JOIN);
                return;
            }
            it->state = JOINED;
            joined++;
            if (returning && it->closed && now_ns() - it->closed > longest) longest = now_ns() - it->closed;
            if (recover) {
                keep_position(it, text, size, "\"position\":\"");
                if (memmem(text, size, "\"reason\"", 8)) told_missed++, it->last = -1;
                return;
            }
            if (returning) it->back = 1, returned++;
            count_latency(now_ns() - it->began);
        }
        return;
    }
    size_t look = size < LOOK ? size : LOOK;
    const char *number = memmem(text, look, "{\"n\":", 5);
    const char *stamp = number ? memmem(number, look - (size_t)(number - text), "\"t\":", 4) : NULL;
    if (!stamp) {
        if (recover && memmem(text, look, "tangram:position", 16)) {
            positioned(it, text, size);
            return;
        }
        if (presence(text, size)) return;
        if (push_total && memmem(text, look, "phx_reply", 9)) {
            replies++;
            refused += memmem(text, size, "\"ok\"", 4) == NULL;
        }
        return;
    }
    int64_t n = strtoll(number + 5, NULL, 10), at = strtoll(stamp + 4, NULL, 10);
    messages++;
    it->messages++;
    if (recover) {
        count_recovered(it, n);
        if (!returning) count_latency(now_ns() - at);
        return;
    }
    if (n <= it->last) disordered++;
    it->last = n;
    count_latency(now_ns() - at);
    /* Other servers put several messages into one frame. */
    if (greeting && size > look) heard(it, stamp, size - (size_t)(stamp - text));
}

/* Whole frames from the front of the buffer; answers the bytes that they were. */
static size_t take_frames(struct client *it) {
    size_t at = 0;
    while (it->have - at >= 2) {
        unsigned char *head = (unsigned char *)it->in + at;
        size_t size = head[1] & 127, skip = 2;
        if (size == 126) {
            if (it->have - at < 4) break;
            size = (size_t)head[2] << 8 | head[3];
            skip = 4;
        } else if (size == 127) {
            if (it->have - at < 10) break;
            size = 0;
            for (int i = 2; i < 10; i++) size = size << 8 | head[i];
            skip = 10;
        }
        if (it->have - at < skip + size) {
            if (skip + size > KEPT && it->have - at >= skip + LOOK) {
                it->large = size;
                it->left = skip + size - (it->have - at);
                memmove(it->in, it->in + at + skip, LOOK);
                it->have = 0;
                return 0;
            }
            if (skip + size > it->room) {
                it->room = skip + size + 65536;
                it->in = realloc(it->in, it->room);
            }
            break;
        }
        if ((head[0] & 15) == 8) {
            int code = size >= 2 ? head[skip] << 8 | head[skip + 1] : 0;
            if (!gone && !returning) fprintf(stderr, "closed with %d: %.*s\n", code,
                    size > 2 ? (int)size - 2 : 0, size > 2 ? (char *)head + skip + 2 : "");
            end_at(it, code == 1012 || code == 1001 ? MOVED : CUT);
            return 0;
        }
        if ((head[0] & 15) <= 2) heard(it, (char *)head + skip, size);
        if (it->state == GONE || it->state == AWAY) return 0;
        at += skip + size;
    }
    return at;
}

/* Reads the rest of a large frame, of which the begin was kept. */
static ssize_t read_large(struct client *it) {
    ssize_t got = recv(it->fd, scrap, it->left < sizeof scrap ? it->left : sizeof scrap, MSG_DONTWAIT);
    if (got <= 0) return got;
    it->left -= (size_t)got;
    if (!it->left && it->state == JOINED) heard(it, it->in, it->large);
    return got;
}

static void readable(struct client *it) {
    if (it->have == it->room) {
        it->room *= 2;
        it->in = realloc(it->in, it->room);
    }
    int large = it->left > 0;
    ssize_t got = large ? read_large(it) : recv(it->fd, it->in + it->have, it->room - it->have, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        broken += it->state == JOINED;
        if (it->state == UPGRADING && !returning) {
            fprintf(stderr, "closed while it upgraded\n");
            exit(1);
        }
        end(it);
        return;
    }
    reads++;
    bytes_read += got;
    if (large) return;
    it->have += (size_t)got;
    size_t used = 0;
    if (it->state == UPGRADING) {
        char *stop = memmem(it->in, it->have, "\r\n\r\n", 4);
        if (!stop) return;
        if (memcmp(it->in + 9, "101", 3) && returning) {
            fprintf(stderr, "upgrade refused: %.*s\n", (int)(strchr(it->in, '\r') - it->in), it->in);
            end_at(it, REFUSED_UPGRADE);
            return;
        }
        if (memcmp(it->in + 9, "101", 3)) {
            fprintf(stderr, "not upgraded: %.*s\n", (int)it->have, it->in);
            exit(1);
        }
        used = (size_t)(stop + 4 - it->in);
        memmove(it->in, it->in + used, it->have - used);
        it->have -= used;
        upgraded(it);
    }
    used = take_frames(it);
    if (it->state == GONE || it->state == AWAY) return;
    memmove(it->in, it->in + used, it->have - used);
    it->have -= used;
}

static void push_due(void) {
    static char text[512];
    int64_t now = now_ns();
    int64_t due = (int64_t)((double)(now - push_begun) / push_gap) + push_batch;
    if (due > push_total) due = push_total;
    int tried = 0;
    while (push_sent < due && tried < count) {
        struct client *it = &clients[next_pusher];
        next_pusher = (next_pusher + 1) % count;
        if (it->state != JOINED || it->out_size) {
            tried++;
            continue;
        }
        tried = 0;
        size_t size = 0;
        for (int i = 0; i < push_batch && push_sent < push_total; i++, push_sent++) {
            int length = sprintf(text, "[\"1\",\"%lld\",\"%s\",\"push\",", (long long)push_sent + 10,
                                 topics ? topics[it - clients] : topic);
            length += payload(text + length, (it - clients) * EACH + it->pushed++, now, 200);
            text[length++] = ']';
            size += frame(it->out + size, text, (size_t)length);
        }
        it->out_size = size;
        it->out_done = 0;
        flush_out(it);
    }
}

static void report(void) {
    int64_t least = INT64_MAX, most = 0;
    for (int i = 0; i < count; i++) {
        if (clients[i].messages < least) least = clients[i].messages;
        if (clients[i].messages > most) most = clients[i].messages;
    }
    printf("{\"messages\": %lld, \"least\": %lld, \"most\": %lld, \"closed\": %d, \"disordered\": %lld, \"reads\": %lld, "
           "\"bytes\": %lld, \"pushed\": %lld, \"replies\": %lld, \"refused\": %lld, \"states\": %lld, "
           "\"differences\": %lld, \"presence_bytes\": %lld, \"skipped\": %lld, \"repeated\": %lld, \"told_missed\": %lld, "
           "\"presence_seconds\": %.6f, ",
           (long long)messages, (long long)least, (long long)most, gone, (long long)disordered, (long long)reads,
           (long long)bytes_read, (long long)push_sent, (long long)replies, (long long)refused, (long long)states,
           (long long)differences, (long long)presence_bytes, (long long)skipped, (long long)repeated,
           (long long)told_missed,
           last_presence ? (double)(last_presence - begun) / 1e9 : 0.0);
    print_percentiles();
    printf(", \"cpu_seconds\": %.6f}\n", cpu_seconds());
    fflush(stdout);
}

static void report_return(void) {
    int64_t refused = 0;
    printf("{\"seconds\": %.6f, ", (double)(now_ns() - begun) / 1e9);
    for (int place = 0; place < PLACES; place++) {
        printf("\"%s\": %lld, ", places[place], (long long)failures[place]);
        if (place != MOVED) refused += failures[place];
    }
    printf("\"refused\": %lld, \"broken\": %lld, \"longest_ms\": %.3f, ", (long long)refused, (long long)broken,
           (double)longest / 1e6);
    print_percentiles();
    printf("}\n");
    fflush(stdout);
}

static int command(void) {
    char line[256];
    ssize_t got = read(0, line, sizeof line - 1);
    if (got <= 0) return 0;
    line[got] = 0;
    if (!strncmp(line, "reset", 5)) {
        clear_latencies();
        messages = disordered = bytes_read = reads = replies = refused = 0;
        states = differences = presence_bytes = 0;
        for (int i = 0; i < count; i++) clients[i].messages = 0, clients[i].last = -1;
        puts("{}");
        fflush(stdout);
    } else if (!strncmp(line, "report", 6)) {
        report();
    } else if (!strncmp(line, "join", 4)) {
        hold = 0;
        clear_latencies();
        begun = now_ns();
    } else if (!strncmp(line, "return", 6)) {
        returning = 1;
        returned = 0;
        memset(failures, 0, sizeof failures);
        broken = longest = 0;
        for (int i = 0; i < count; i++) clients[i].back = 0, clients[i].again = clients[i].closed = 0;
        clear_latencies();
        begun = now_ns();
    } else if (!strncmp(line, "push", 4)) {
        long long total, rate, batch;
        if (sscanf(line, "push %lld %lld %lld", &total, &rate, &batch) != 3) return 0;
        push_total = total;
        push_batch = batch;
        push_sent = 0;
        push_gap = 1e9 / (double)rate;
        push_begun = now_ns();
        for (int i = 0; i < count; i++) clients[i].pushed = 0;
    } else {
        return 0;
    }
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 7 && argc != 8) return 2;
    int held = hold = argc == 8 && !strcmp(argv[7], "hold");
    recover = argc == 8 && !hold;
    port = atoi(argv[1]);
    path = argv[2];
    plain = !strcmp(path, "-");
    topic = argv[3];
    token = argv[4];
    count = atoi(argv[5]);
    window = atoi(argv[6]);
    clients = calloc((size_t)count, sizeof *clients);
    for (int i = 0; i < count; i++) {
        clients[i].room = 16384;
        clients[i].in = malloc(clients[i].room);
        clients[i].out = malloc(32768);
    }
    if (topic[0] == '@') read_topics(topic + 1);
    if (strchr(token, '=')) {
        greeting = 1;
        subprotocol = strndup(token, (size_t)(strchr(token, '=') - token));
        greeted_size = unhex(greeted, strchr(token, '=') + 1);
    }
    epoll = epoll_create1(0);
    struct epoll_event input = {.events = EPOLLIN, .data.u32 = UINT32_MAX}, events[512];
    epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &input);
    begun = now_ns();
    int told = 0;
    for (;;) {
        while (started < count && started - (hold ? upgrades : joined) - gone < window) start(&clients[started++]);
        while (!hold && asked < upgrades && asked < count && asked - joined - gone < window) {
            struct client *it = &clients[asked++];
            if (it->state != HELD) continue;
            it->began = now_ns();
            join(it);
        }
        if (told == (held && !hold) && (hold ? upgrades : joined) == count) {
            told++;
            printf("{\"seconds\": %.6f, ", (double)(now_ns() - begun) / 1e9);
            print_percentiles();
            printf("}\n");
            fflush(stdout);
        }
        if (returning && returned == count) {
            returning = 0;
            report_return();
        }
        for (int i = 0; returning && i < count; i++) {
            struct client *it = &clients[i];
            if (it->state == AWAY && it->again <= now_ns()) start(it);
            if (it->state == JOINING && it->began + JOIN_NS <= now_ns()) end_at(it, UNANSWERED_JOIN);
        }
        int ready = epoll_wait(epoll, events, 512, push_sent < push_total || returning ? 1 : -1);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.u32 == UINT32_MAX) {
                if (!command()) return 0;
                continue;
            }
            struct client *it = &clients[events[i].data.u32];
            if (it->state == GONE || it->state == AWAY) continue;
            if (it->state == CONNECTING && events[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) connected(it);
            else if (events[i].events & EPOLLOUT) flush_out(it);
            if (it->state != GONE && it->state != AWAY && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(it);
        }
        if (push_sent < push_total) push_due();
    }
}
