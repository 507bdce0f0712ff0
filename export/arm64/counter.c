/* A QEMU TCG plugin: instructions executed and system calls made so far, a line of both at each getppid().
   The few declarations it needs are those of qemu-plugin.h, API version 1. Nothing is atomic: a thread that runs beside
   another where marks are made is a line that says so. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define GETPPID 173 /* aarch64 */

typedef uint64_t id_t_;
struct tb;
extern size_t qemu_plugin_tb_n_insns(const struct tb *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(id_t_, void (*)(id_t_, struct tb *));
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct tb *, int add, void *counter, uint64_t by);
extern void qemu_plugin_register_vcpu_syscall_cb(
    id_t_, void (*)(id_t_, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
extern void qemu_plugin_register_vcpu_init_cb(id_t_, void (*)(id_t_, unsigned));
extern void qemu_plugin_register_vcpu_exit_cb(id_t_, void (*)(id_t_, unsigned));
extern void qemu_plugin_register_atexit_cb(id_t_, void (*)(id_t_, void *), void *);

int qemu_plugin_version = 1;
static uint64_t executed, calls;
static int threads, is_counting;
static FILE *out;

static void translated(id_t_ id, struct tb *tb) {
    qemu_plugin_register_vcpu_tb_exec_inline(tb, 0, &executed, qemu_plugin_tb_n_insns(tb));
}

static void called(id_t_ id, unsigned vcpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                   uint64_t f, uint64_t g, uint64_t h) {
    if (number != GETPPID) {
        calls++;
        return;
    }
    is_counting = 1;
    fprintf(out, "%" PRIu64 " %" PRIu64 "\n", executed, calls);
    if (threads > 1) fprintf(out, "thread\n");
}

static void started(id_t_ id, unsigned vcpu) {
    threads++;
    if (is_counting) fprintf(out, "thread\n");
}

static void stopped(id_t_ id, unsigned vcpu) { threads--; }

static void ended(id_t_ id, void *unused) { fclose(out); }

int qemu_plugin_install(id_t_ id, const void *info, int argc, char **argv) {
    if (argc != 1 || strncmp(argv[0], "out=", 4) || !(out = fopen(argv[0] + 4, "w"))) return 1;
    qemu_plugin_register_vcpu_init_cb(id, started);
    qemu_plugin_register_vcpu_exit_cb(id, stopped);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
