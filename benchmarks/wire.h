/* What loadgen.c, httpgen.c and echo.c share: one clock, sockets, read buffers, MQTT 3.1.1 packets. */
#ifndef WIRE_H
#define WIRE_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

#define NS 1000000000LL
#define HANDSHAKE_MS 10000
#define READ_BYTES (1 << 20)

enum { CONNACK = 2, PUBLISH = 3, PUBACK = 4, SUBACK = 9 };

static inline void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "error: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    exit(1);
}

static inline int64_t clock_ns(clockid_t clock) {
    struct timespec now;
    if (clock_gettime(clock, &now)) die("clock_gettime: %s", strerror(errno));
    return now.tv_sec * NS + now.tv_nsec;
}

static inline int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

/* The option's value of a command line "--name value"; fallback when it is not there, an error when that is NULL. */
static inline const char *option(int argc, char **argv, const char *name, const char *fallback) {
    for (int i = 1; i + 1 < argc; i++)
        if (!strcmp(argv[i], name)) return argv[i + 1];
    if (!fallback) die("%s is missing", name);
    return fallback;
}

/* Sleeps as exact as the kernel can make them. */
static inline void exact_timers(void) {
#ifdef __linux__
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
#endif
}

/* Take a core when one is free or at our turn, not from whoever runs the moment something comes (sched(7)). */
static inline void give_way(void) {
#ifdef SCHED_BATCH
    struct sched_param none = {0};
    if (sched_setscheduler(0, SCHED_BATCH, &none)) die("SCHED_BATCH: %s", strerror(errno));
#endif
}

/* Bytes begin..end of data, of which size are allocated. */
struct buffer {
    unsigned char *data;
    size_t begin, end, size;
};

static inline unsigned char *reserve(struct buffer *buffer, size_t count) {
    if (buffer->begin == buffer->end) buffer->begin = buffer->end = 0;
    if (buffer->end + count > buffer->size && buffer->begin) {
        memmove(buffer->data, buffer->data + buffer->begin, buffer->end - buffer->begin);
        buffer->end -= buffer->begin;
        buffer->begin = 0;
    }
    if (buffer->end + count > buffer->size) {
        buffer->size = (buffer->end + count) * 2;
        if (!(buffer->data = realloc(buffer->data, buffer->size))) die("no memory for %zu bytes", buffer->size);
    }
    return buffer->data + buffer->end;
}

static inline void append(struct buffer *buffer, const void *bytes, size_t count) {
    memcpy(reserve(buffer, count), bytes, count);
    buffer->end += count;
}

static inline int connect_to(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) die("port %d: %s", port, strerror(errno));
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on)) die("TCP_NODELAY: %s", strerror(errno));
    return fd;
}

static inline void nonblocking(int fd) {
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK)) die("O_NONBLOCK: %s", strerror(errno));
}

/* Acknowledge at once what was read: else the peer's Nagle waits up to 40 ms for it. The kernel forgets this. */
static inline void quick_ack(int fd) {
#ifdef TCP_QUICKACK
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on);
#endif
    (void)fd;
}

/* Append what one read gives; 0 when there is nothing yet. */
static inline size_t read_some(int fd, struct buffer *into) {
    ssize_t count = recv(fd, reserve(into, READ_BYTES), READ_BYTES, 0);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (count < 0) die("recv: %s", strerror(errno));
    if (count == 0) die("the other side closed the connection");
    into->end += (size_t)count;
    return (size_t)count;
}

/* Write what the socket takes; the rest stays. */
static inline void write_some(int fd, struct buffer *from) {
    while (from->begin < from->end) {
        ssize_t count = send(fd, from->data + from->begin, from->end - from->begin, MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0 && errno == EAGAIN) return;
        if (count < 0) die("send: %s", strerror(errno));
        from->begin += (size_t)count;
    }
}

/* One MQTT control packet (MQTT 3.1.1, section 2). size: of all of it. body: payload of a PUBLISH, else all
   after the fixed header. mid: of a PUBLISH at QoS 1, or a PUBACK. */
struct packet {
    int type, qos;
    uint16_t mid;
    const unsigned char *body;
    size_t length, size;
};

/* Look at the first packet of a buffer; 0 when it is not complete. */
static inline int first_packet(const struct buffer *buffer, struct packet *found) {
    const unsigned char *at = buffer->data + buffer->begin, *stop = buffer->data + buffer->end, *body = at + 1;
    size_t length = 0;
    for (int shift = 0;; shift += 7) {
        if (body >= stop) return 0;
        if (shift > 21) die("a length of more than 4 bytes");
        length |= (size_t)(*body & 0x7F) << shift;
        if (*body++ < 0x80) break;
    }
    if ((size_t)(stop - body) < length) return 0;
    found->type = at[0] >> 4;
    found->qos = at[0] >> 1 & 3;
    found->size = (size_t)(body - at) + length;
    found->mid = 0;
    if (found->type == PUBLISH) {
        size_t head = length < 2 ? 3 : 2 + (size_t)(body[0] << 8 | body[1]) + (found->qos ? 2 : 0);
        if (head > length) die("a PUBLISH that is shorter than its topic");
        if (found->qos) found->mid = (uint16_t)(body[head - 2] << 8 | body[head - 1]);
        body += head;
        length -= head;
    } else if (found->type == PUBACK && length >= 2) {
        found->mid = (uint16_t)(body[0] << 8 | body[1]);
    }
    found->body = body;
    found->length = length;
    return 1;
}

static inline void append_header(struct buffer *to, int first, size_t length) {
    unsigned char head[5] = {(unsigned char)first};
    int used = 1;
    do {
        head[used++] = (unsigned char)((length & 0x7F) | (length > 0x7F ? 0x80 : 0));
    } while (length >>= 7);
    append(to, head, (size_t)used);
}

static inline void append_word(struct buffer *to, unsigned word) {
    unsigned char bytes[2] = {(unsigned char)(word >> 8), (unsigned char)word};
    append(to, bytes, 2);
}

static inline void append_text(struct buffer *to, const char *text) {
    append_word(to, (unsigned)strlen(text));
    append(to, text, strlen(text));
}

/* A whole PUBLISH packet; mid is written at QoS 1. */
static inline void append_publish(
    struct buffer *to, const char *topic, int qos, unsigned mid, const void *body, size_t length) {
    append_header(to, PUBLISH << 4 | qos << 1, 2 + strlen(topic) + (qos ? 2 : 0) + length);
    append_text(to, topic);
    if (qos) append_word(to, mid);
    append(to, body, length);
}

static inline void append_puback(struct buffer *to, unsigned mid) {
    append_header(to, PUBACK << 4, 2);
    append_word(to, mid);
}

/* Read one packet of this type, the answer to what was just asked. */
static inline void expect(int fd, int type, struct buffer *in) {
    struct packet found;
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    while (!first_packet(in, &found)) {
        if (poll(&ready, 1, HANDSHAKE_MS) <= 0) die("the broker does not answer");
        read_some(fd, in);
    }
    int refused = type == CONNACK ? found.body[found.length - 1] != 0 : found.body[found.length - 1] >= 0x80;
    if (found.type != type || refused) die("the broker answered with packet type %d, wanted %d", found.type, type);
    in->begin += found.size;
}

/* An open session: clean, without keepalive, under a name the broker chooses; subscribed when there is a filter. */
static inline int mqtt_open(int port, const char *filter, int qos, struct buffer *in) {
    static const unsigned char connect_body[] = {0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, 0};
    struct buffer out = {0};
    int fd = connect_to(port);
    append_header(&out, 0x10, sizeof connect_body);
    append(&out, connect_body, sizeof connect_body);
    write_some(fd, &out);
    expect(fd, CONNACK, in);
    if (filter) {
        append_header(&out, 0x82, 2 + 2 + strlen(filter) + 1);
        append_word(&out, 1);
        append_text(&out, filter);
        append(&out, &(unsigned char){(unsigned char)qos}, 1);
        write_some(fd, &out);
        expect(fd, SUBACK, in);
    }
    free(out.data);
    return fd;
}

#endif
