/* The floor: an MQTT client that sends every payload back, without looking at it.

   echo --port N --subscribe FILTER --publish TOPIC --qos 0|1 --form single|batch

   single: one write for each packet, as it comes out of the read buffer. batch: one write for all packets of a read,
   as the daemon's lane does it. Reads are as large as the socket allows in both. */
#include "wire.h"

static unsigned next_mid = 0;

static void answer(struct buffer *out, const struct packet *found, const char *topic, int qos) {
    if (found->qos) append_puback(out, found->mid);
    next_mid = next_mid % 65535 + 1;
    append_publish(out, topic, qos, next_mid, found->body, found->length);
}

int main(int argc, char **argv) {
    const char *topic = option(argc, argv, "--publish", NULL), *form = option(argc, argv, "--form", NULL);
    int qos = atoi(option(argc, argv, "--qos", NULL)), batch = !strcmp(form, "batch");
    if (!batch && strcmp(form, "single")) die("--form %s, wanted single or batch", form);
    struct buffer in = {0}, out = {0};
    int port = atoi(option(argc, argv, "--port", NULL));
    int fd = mqtt_open(port, option(argc, argv, "--subscribe", NULL), qos, &in);
    for (;;) {
        struct packet found;
        while (first_packet(&in, &found)) {
            in.begin += found.size;
            if (found.type != PUBLISH) continue;
            answer(&out, &found, topic, qos);
            if (!batch) write_some(fd, &out);
        }
        write_some(fd, &out);
        read_some(fd, &in);
        quick_ack(fd);
    }
}
