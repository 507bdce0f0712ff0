/* The load generator for the HTTP peer: keep-alive connections, each with one request unanswered; one thread.

   httpgen --port N --path /predict --payloads FILE --number-at N --first N --connections N
           --warm-up S --seconds S --stall S --watch PID,.. --keep BYTES --out FILE

   Numbers, payloads, what is written to --out and how it gives way are those of loadgen. */
#include "record.h"

#define MOST_CONNECTIONS 256

struct connection {
    int fd;
    struct buffer in, out;
};

struct generator {
    struct record record;
    struct payloads from;
    struct connection connections[MOST_CONNECTIONS];
    const char *path;
    uint64_t first;
    ssize_t number_at;
    int n, stall_ms;
};

static void send_request(struct generator *g, struct connection *c) {
    char head[256];
    uint64_t number = g->first + g->record.sent;
    size_t which = number % g->from.count;
    int used = snprintf(head, sizeof head,
        "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %u\r\n\r\n", g->path,
        g->from.lengths[which]);
    append(&c->out, head, (size_t)used);
    append(&c->out, g->from.bodies[which], g->from.lengths[which]);
    if (g->number_at >= 0) write_number(c->out.data + c->out.end - g->from.lengths[which] + g->number_at, number);
    sent_one(&g->record, now_ns(), 0);
    write_some(c->fd, &c->out);
}

/* The body of the response, once it is complete; its length, or -1 (RFC 9112, section 6). */
static ssize_t response(struct connection *c, const unsigned char **body) {
    append(&c->in, "", 1); /* ends the text, and is not counted */
    c->in.end--;
    char *at = (char *)c->in.data + c->in.begin, *end = strstr(at, "\r\n\r\n");
    if (!end) return -1;
    if (strncmp(at, "HTTP/1.1 200", 12)) die("the server answered %.200s", at);
    char *length = strcasestr(at, "\r\ncontent-length:");
    if (!length || length > end) die("a response without content-length: %.200s", at);
    size_t size = strtoull(length + 17, NULL, 10), head = (size_t)(end + 4 - at);
    if (c->in.end - c->in.begin < head + size) return -1;
    *body = c->in.data + c->in.begin + head;
    c->in.begin += head + size;
    return (ssize_t)size;
}

/* Read what came on one connection, and ask again unless the time is over. */
static void serve(struct generator *g, struct connection *c, short events) {
    const unsigned char *body;
    if (events & POLLOUT) write_some(c->fd, &c->out);
    if (!(events & ~POLLOUT) || !read_some(c->fd, &c->in)) return;
    int64_t at_ns = now_ns();
    ssize_t length = response(c, &body);
    if (length < 0) return;
    came_one(&g->record, at_ns, body, (size_t)length);
    if (!g->record.end_ns) send_request(g, c);
}

static void run(struct generator *g, int64_t warm_up_ns, int64_t ns) {
    struct pollfd ready[MOST_CONNECTIONS];
    int64_t begin_ns = now_ns() + warm_up_ns, end_ns = begin_ns + ns;
    for (int i = 0; i < g->n; i++) send_request(g, &g->connections[i]);
    while (g->record.results < g->record.sent) {
        int64_t now = now_ns();
        if (now >= begin_ns && !g->record.begin_ns) mark(&g->record);
        if (now >= end_ns && !g->record.end_ns) mark(&g->record);
        for (int i = 0; i < g->n; i++) {
            struct connection *c = &g->connections[i];
            ready[i].fd = c->fd;
            ready[i].events = (short)(POLLIN | (c->out.begin < c->out.end ? POLLOUT : 0));
        }
        if (poll(ready, (nfds_t)g->n, g->stall_ms) <= 0) break;
        for (int i = 0; i < g->n; i++) serve(g, &g->connections[i], ready[i].revents);
    }
    g->record.stalled = !g->record.end_ns;
    while (!g->record.end_ns) mark(&g->record);
}

int main(int argc, char **argv) {
    static struct generator g;
    int port = atoi(option(argc, argv, "--port", NULL));
    int64_t warm_up_ns = (int64_t)(atof(option(argc, argv, "--warm-up", NULL)) * 1e9);
    int64_t ns = (int64_t)(atof(option(argc, argv, "--seconds", NULL)) * 1e9);
    g.n = atoi(option(argc, argv, "--connections", NULL));
    if (g.n < 1 || g.n > MOST_CONNECTIONS) die("--connections %d, wanted 1 to %d", g.n, MOST_CONNECTIONS);
    g.from = read_payloads(option(argc, argv, "--payloads", NULL));
    g.path = option(argc, argv, "--path", NULL);
    g.first = strtoull(option(argc, argv, "--first", "0"), NULL, 10);
    g.stall_ms = (int)(atof(option(argc, argv, "--stall", NULL)) * 1e3);
    g.number_at = atoi(option(argc, argv, "--number-at", "-1"));
    open_record(&g.record, option(argc, argv, "--watch", ""), strtoull(option(argc, argv, "--keep", "65536"), NULL, 10));
    for (int i = 0; i < g.n; i++) {
        g.connections[i].fd = connect_to(port);
        nonblocking(g.connections[i].fd);
    }
    if (g.n > 1) give_way();
    run(&g, warm_up_ns, ns);
    close_record(&g.record, option(argc, argv, "--out", NULL));
    return 0;
}
