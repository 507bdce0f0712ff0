/* The load generator: two MQTT 3.1.1 connections, one publishes, one reads the results; one thread, one clock.

   loadgen --port N --publish TOPIC --subscribe FILTER --qos 0|1 --payloads FILE --number-at N --first N
           --loop closed|open --rate N --warm-up S --seconds S --samples N --length N --hop N
           --stall S --watch PID,.. --keep BYTES --out FILE

   closed: --rate messages unanswered, the highest rate without a growing backlog; with more than one it gives way to
   the subject and the broker, so that the cores are theirs. open: --rate a second on an absolute schedule, awake for
   the last AWAKE_NS before each; a message written LATE_NS or more after it was due counts from when it was due.
   Messages are numbered from --first on; the number stands in ten digits at --number-at of the payload, or nowhere if
   that is -1. Every message carries --samples samples; a result is due with each that completes a window of --length
   samples, and one begins every --hop. After --stall without a result, those still missing are given up. Nothing is
   judged here: everything is written to --out. */
#include "record.h"

#define LATE_NS 50000
#define AWAKE_NS 100000
#define LINGER_NS (NS / 20)
#define PIECE 256

struct frame {
    struct buffer packet;
    size_t body_at;
};

struct generator {
    struct record record;
    struct frame *frames;
    size_t n_frames;
    ssize_t number_at;
    uint64_t first, samples, length, hop, answered, acknowledged;
    int64_t stall_ns;
    int qos, publisher, subscriber;
    struct buffer in, acks_in, out, acks_out;
};

/* The message that completes a window. */
static uint64_t completing(const struct generator *g, uint64_t window) {
    return (g->length + window * g->hop + g->samples - 1) / g->samples - 1;
}

/* Windows that so many messages complete. */
static uint64_t completed(const struct generator *g, uint64_t messages) {
    uint64_t samples = messages * g->samples;
    return samples < g->length ? 0 : (samples - g->length) / g->hop + 1;
}

static void make_frames(struct generator *g, const char *topic, const char *path) {
    struct payloads found = read_payloads(path);
    g->n_frames = found.count;
    if (!(g->frames = calloc(found.count, sizeof *g->frames))) die("no memory for the frames");
    for (size_t i = 0; i < found.count; i++) {
        append_publish(&g->frames[i].packet, topic, g->qos, 0, found.bodies[i], found.lengths[i]);
        g->frames[i].body_at = g->frames[i].packet.end - found.lengths[i];
    }
}

static void append_message(struct generator *g, uint64_t number) {
    struct frame *frame = &g->frames[number % g->n_frames];
    unsigned char *body = frame->packet.data + frame->body_at;
    unsigned mid = (unsigned)(number % 65535 + 1);
    if (g->number_at >= 0) write_number(body + g->number_at, number);
    if (g->qos) body[-2] = (unsigned char)(mid >> 8), body[-1] = (unsigned char)mid;
    append(&g->out, frame->packet.data, frame->packet.end);
}

/* Write the next messages, stamped with now. due_ns: when they were to be written, 0 for now; stamped with that if it
   was LATE_NS ago or more. */
static void send_messages(struct generator *g, uint64_t count, int64_t due_ns) {
    while (count) {
        uint64_t piece = count < PIECE ? count : PIECE;
        for (uint64_t i = 0; i < piece; i++) append_message(g, g->first + g->record.sent + i);
        int64_t at_ns = now_ns(), late_ns = due_ns ? at_ns - due_ns : 0;
        if (late_ns >= LATE_NS) at_ns = due_ns;
        for (uint64_t i = 0; i < piece; i++) sent_one(&g->record, at_ns, late_ns);
        g->record.late += late_ns >= LATE_NS && g->record.begin_ns ? piece : 0;
        write_some(g->publisher, &g->out);
        count -= piece;
    }
}

static void read_results(struct generator *g) {
    struct packet found;
    if (!read_some(g->subscriber, &g->in)) return;
    int64_t at_ns = now_ns();
    quick_ack(g->subscriber);
    while (first_packet(&g->in, &found)) {
        g->in.begin += found.size;
        if (found.type != PUBLISH) continue;
        came_one(&g->record, at_ns, found.body, found.length);
        g->answered++;
        if (found.qos) append_puback(&g->acks_out, found.mid);
    }
    write_some(g->subscriber, &g->acks_out);
}

static void read_acks(struct generator *g) {
    struct packet found;
    if (!read_some(g->publisher, &g->acks_in)) return;
    quick_ack(g->publisher);
    while (first_packet(&g->acks_in, &found)) {
        g->acks_in.begin += found.size;
        g->acknowledged += found.type == PUBACK;
    }
}

/* Wait for something to read, or to write what is left over, until then; and do it. */
static void turn(struct generator *g, int64_t until_ns) {
    struct pollfd ready[2] = {
        {.fd = g->subscriber, .events = (short)(POLLIN | (g->acks_out.begin < g->acks_out.end ? POLLOUT : 0))},
        {.fd = g->publisher, .events = (short)(POLLIN | (g->out.begin < g->out.end ? POLLOUT : 0))},
    };
    int64_t left_ns = until_ns - now_ns();
    if (left_ns < 0) left_ns = 0;
    struct timespec timeout = {left_ns / NS, left_ns % NS};
    if (ppoll(ready, 2, &timeout, NULL) <= 0) return;
    if (ready[0].revents & ~POLLOUT) read_results(g);
    if (ready[1].revents & ~POLLOUT) read_acks(g);
    if (ready[0].revents & POLLOUT) write_some(g->subscriber, &g->acks_out);
    if (ready[1].revents & POLLOUT) write_some(g->publisher, &g->out);
}

/* Keep so many unanswered until then; 0 when nothing came for stall_ns. */
static int keep_outstanding(struct generator *g, uint64_t outstanding, int64_t end_ns) {
    int64_t now = now_ns(), last_ns = now;
    for (uint64_t before = g->answered; now < end_ns; now = now_ns()) {
        uint64_t sent = g->first + g->record.sent, allowed = completing(g, g->answered) + outstanding;
        if (allowed > sent) send_messages(g, allowed - sent, 0);
        turn(g, end_ns < last_ns + g->stall_ns ? end_ns : last_ns + g->stall_ns);
        if (g->answered != before) before = g->answered, last_ns = now;
        if (now - last_ns >= g->stall_ns) return 0;
    }
    return 1;
}

static void closed_loop(struct generator *g, uint64_t outstanding, int64_t warm_up_ns, int64_t ns) {
    int going = keep_outstanding(g, outstanding, now_ns() + warm_up_ns);
    mark(&g->record);
    g->record.stalled = !(going && keep_outstanding(g, outstanding, g->record.begin_ns + ns));
    mark(&g->record);
}

static void open_loop(struct generator *g, double rate_hz, int64_t warm_up_ns, int64_t ns) {
    int64_t begin_ns = now_ns() + NS / 1000;
    uint64_t warm_up = (uint64_t)((double)warm_up_ns / 1e9 * rate_hz);
    uint64_t total = warm_up + (uint64_t)((double)ns / 1e9 * rate_hz);
    for (uint64_t i = 0; i <= total; i++) {
        int64_t due_ns = begin_ns + (int64_t)((double)i * 1e9 / rate_hz);
        if (i == warm_up || i == total) mark(&g->record);
        if (i == total) break;
        if (i == warm_up && g->record.begin_ns > due_ns) g->record.begin_ns = due_ns;
        while (now_ns() < due_ns) turn(g, due_ns - AWAKE_NS);
        send_messages(g, 1, due_ns);
        turn(g, 0);
    }
}

/* Wait for what is still to come, and a moment for what should not. */
static void drain(struct generator *g) {
    uint64_t sent = g->first + g->record.sent, wanted = completed(g, sent);
    int64_t last_ns = now_ns(), end_ns;
    for (uint64_t before = 0, seen; now_ns() - last_ns < g->stall_ns; before = seen) {
        if (g->answered >= wanted && g->acknowledged >= (g->qos ? g->record.sent : 0)) break;
        turn(g, last_ns + g->stall_ns);
        seen = g->answered + g->acknowledged;
        if (seen != before) last_ns = now_ns();
    }
    for (end_ns = now_ns() + LINGER_NS; now_ns() < end_ns;) turn(g, end_ns);
}

int main(int argc, char **argv) {
    struct generator g = {0};
    const char *filter = option(argc, argv, "--subscribe", NULL), *loop = option(argc, argv, "--loop", NULL);
    int port = atoi(option(argc, argv, "--port", NULL)), closed = !strcmp(loop, "closed");
    double rate = atof(option(argc, argv, "--rate", NULL));
    int64_t warm_up_ns = (int64_t)(atof(option(argc, argv, "--warm-up", NULL)) * 1e9);
    int64_t ns = (int64_t)(atof(option(argc, argv, "--seconds", NULL)) * 1e9);
    if (!closed && strcmp(loop, "open")) die("--loop %s, wanted closed or open", loop);
    if (rate <= 0 || ns <= 0) die("--rate and --seconds must be above 0");
    g.qos = atoi(option(argc, argv, "--qos", NULL));
    g.number_at = atoi(option(argc, argv, "--number-at", "-1"));
    g.first = strtoull(option(argc, argv, "--first", "0"), NULL, 10);
    g.samples = strtoull(option(argc, argv, "--samples", "1"), NULL, 10);
    g.length = strtoull(option(argc, argv, "--length", "1"), NULL, 10);
    g.hop = strtoull(option(argc, argv, "--hop", "1"), NULL, 10);
    if (!g.samples || !g.length || !g.hop) die("--samples, --length and --hop must be above 0");
    g.answered = completed(&g, g.first);
    g.stall_ns = (int64_t)(atof(option(argc, argv, "--stall", NULL)) * 1e9);
    make_frames(&g, option(argc, argv, "--publish", NULL), option(argc, argv, "--payloads", NULL));
    open_record(&g.record, option(argc, argv, "--watch", ""), strtoull(option(argc, argv, "--keep", "65536"), NULL, 10));
    exact_timers();
    g.subscriber = mqtt_open(port, filter, g.qos, &g.in);
    g.publisher = mqtt_open(port, NULL, 0, &g.acks_in);
    nonblocking(g.subscriber);
    nonblocking(g.publisher);
    if (closed && rate > 1) give_way();
    if (closed) closed_loop(&g, (uint64_t)rate, warm_up_ns, ns);
    else open_loop(&g, rate, warm_up_ns, ns);
    drain(&g);
    close_record(&g.record, option(argc, argv, "--out", NULL));
    return 0;
}
