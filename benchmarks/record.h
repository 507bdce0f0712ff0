/* What a generator keeps of a run, and how it hands it over: all stamps and results in one file, a summary as JSON. */
#ifndef RECORD_H
#define RECORD_H

#include "wire.h"
#include <sys/mman.h>

#define MOST_MESSAGES (32u << 20)
#define MOST_BYTES (8ull << 30)
#define MOST_WATCHED 8
#define DIGITS 10
#define FIRST_NUMBER 1000000000LL

/* written_ns: per message, when it was written, or due. late_ns: how long after it was due. arrived_ns, lengths, kept:
   per result, when it was read, its bytes, and how many of them are in bytes. What is measured lies between begin_ns
   and end_ns. own_ns, watched_ns: CPU time meanwhile, of this process and the ones watched. idle_ns, interrupts_ns: of
   all cores. late: messages timed from when they were due. stalled: given up before the measured time was over. */
struct record {
    int64_t *written_ns, *late_ns, *arrived_ns;
    uint32_t *lengths, *kept;
    unsigned char *bytes;
    uint64_t sent, results, bytes_used, keep;
    int64_t begin_ns, end_ns, own_ns, watched_ns[MOST_WATCHED];
    clockid_t watched[MOST_WATCHED];
    int64_t idle_ns, interrupts_ns;
    int n_watched, stalled;
    uint64_t late;
};

/* Memory that costs nothing until it is written. */
static inline void *room(size_t bytes) {
    void *found = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) die("no address space for %zu bytes: %s", bytes, strerror(errno));
    return found;
}

/* watch: pids with commas between them. keep: bytes of each result to keep. */
static inline void open_record(struct record *record, const char *watch, uint64_t keep) {
    memset(record, 0, sizeof *record);
    record->written_ns = room(MOST_MESSAGES * sizeof(int64_t));
    record->late_ns = room(MOST_MESSAGES * sizeof(int64_t));
    record->arrived_ns = room(MOST_MESSAGES * sizeof(int64_t));
    record->lengths = room(MOST_MESSAGES * sizeof(uint32_t));
    record->kept = room(MOST_MESSAGES * sizeof(uint32_t));
    record->bytes = room(MOST_BYTES);
    record->keep = keep;
    for (const char *at = watch; *at; at += strcspn(at, ","), at += *at == ',') {
        if (record->n_watched == MOST_WATCHED) die("more than %d processes to watch", MOST_WATCHED);
        int error = clock_getcpuclockid(atoi(at), &record->watched[record->n_watched++]);
        if (error) die("process %d: %s", atoi(at), strerror(error));
    }
}

static inline void sent_one(struct record *record, int64_t at_ns, int64_t late_ns) {
    if (record->sent == MOST_MESSAGES) die("more than %u messages", MOST_MESSAGES);
    record->late_ns[record->sent] = late_ns;
    record->written_ns[record->sent++] = at_ns;
}

static inline void came_one(struct record *record, int64_t at_ns, const unsigned char *body, size_t length) {
    size_t kept = length < record->keep ? length : record->keep;
    if (record->results == MOST_MESSAGES || record->bytes_used + kept > MOST_BYTES) die("too many results");
    memcpy(record->bytes + record->bytes_used, body, kept);
    record->arrived_ns[record->results] = at_ns;
    record->lengths[record->results] = (uint32_t)length;
    record->kept[record->results++] = (uint32_t)kept;
    record->bytes_used += kept;
}

/* Add what all cores spent idle and in interrupts since the machine's start (proc(5), stat), times sign. */
static inline void add_machine(struct record *record, int64_t sign) {
    unsigned long long ticks[8] = {0};
    FILE *file = fopen("/proc/stat", "r");
    if (!file) die("/proc/stat: %s", strerror(errno));
    int found = fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", ticks, ticks + 1, ticks + 2, ticks + 3,
        ticks + 4, ticks + 5, ticks + 6, ticks + 7);
    fclose(file);
    if (found < 7) die("/proc/stat does not begin with the ticks of all cores");
    int64_t tick_ns = NS / sysconf(_SC_CLK_TCK);
    record->idle_ns += sign * (int64_t)(ticks[3] + ticks[4]) * tick_ns;
    record->interrupts_ns += sign * (int64_t)(ticks[5] + ticks[6]) * tick_ns;
}

/* Begin what is measured, then end it. */
static inline void mark(struct record *record) {
    int64_t sign = record->begin_ns ? 1 : -1;
    add_machine(record, sign);
    record->own_ns += sign * clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    for (int i = 0; i < record->n_watched; i++) record->watched_ns[i] += sign * clock_ns(record->watched[i]);
    *(record->begin_ns ? &record->end_ns : &record->begin_ns) = now_ns();
}

static inline void put(FILE *file, const void *bytes, size_t size, size_t count) {
    if (fwrite(bytes, size, count, file) != count) die("the results cannot be written: %s", strerror(errno));
}

/* To the file: written_ns, late_ns, arrived_ns, lengths, kept, bytes, in this machine's byte order. */
static inline void close_record(const struct record *record, const char *path) {
    FILE *file = fopen(path, "wb");
    if (!file) die("%s: %s", path, strerror(errno));
    put(file, record->written_ns, sizeof(int64_t), record->sent);
    put(file, record->late_ns, sizeof(int64_t), record->sent);
    put(file, record->arrived_ns, sizeof(int64_t), record->results);
    put(file, record->lengths, sizeof(uint32_t), record->results);
    put(file, record->kept, sizeof(uint32_t), record->results);
    put(file, record->bytes, 1, record->bytes_used);
    if (fclose(file)) die("%s: %s", path, strerror(errno));
    printf("{\"sent\":%llu,\"results\":%llu,\"begin_ns\":%lld,\"end_ns\":%lld,\"late\":%llu,\"own_ns\":%lld,",
        (unsigned long long)record->sent, (unsigned long long)record->results, (long long)record->begin_ns,
        (long long)record->end_ns, (unsigned long long)record->late, (long long)record->own_ns);
    printf("\"cores\":%ld,\"idle_ns\":%lld,\"interrupts_ns\":%lld,\"stalled\":%s,", sysconf(_SC_NPROCESSORS_ONLN),
        (long long)record->idle_ns, (long long)record->interrupts_ns, record->stalled ? "true" : "false");
    printf("\"watched_ns\":[");
    for (int i = 0; i < record->n_watched; i++) printf(i ? ",%lld" : "%lld", (long long)record->watched_ns[i]);
    printf("]}\n");
}

/* Messages read from a file: per message its length (4 bytes, this machine's order) and bytes. */
struct payloads {
    const unsigned char **bodies;
    uint32_t *lengths;
    size_t count;
};

static inline struct payloads read_payloads(const char *path) {
    struct payloads found = {0};
    struct buffer file = {0};
    FILE *stream = fopen(path, "rb");
    if (!stream) die("%s: %s", path, strerror(errno));
    for (size_t count; (count = fread(reserve(&file, READ_BYTES), 1, READ_BYTES, stream)) > 0;) file.end += count;
    fclose(stream);
    for (size_t at = 0; at + 4 <= file.end; found.count++) {
        found.bodies = realloc(found.bodies, (found.count + 1) * sizeof *found.bodies);
        found.lengths = realloc(found.lengths, (found.count + 1) * sizeof *found.lengths);
        if (!found.bodies || !found.lengths) die("no memory for the payloads");
        memcpy(&found.lengths[found.count], file.data + at, 4);
        found.bodies[found.count] = file.data + at + 4;
        at += 4 + found.lengths[found.count];
        if (at > file.end) die("%s is cut off", path);
    }
    if (!found.count) die("%s holds no payloads", path);
    return found;
}

/* Ten digits, so that the length never changes. */
static inline void write_number(unsigned char *at, uint64_t number) {
    number += FIRST_NUMBER;
    for (int i = DIGITS - 1; i >= 0; i--, number /= 10) at[i] = (unsigned char)('0' + number % 10);
}

#endif
