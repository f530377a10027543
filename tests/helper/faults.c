/* Preloaded into the helper: makes the n-th call of one system function fail, or kills the process there.

   FAULT=name:n:errno       fail with this error number, once
   FAULT=name:n:KILL        die by SIGKILL instead of the call; name:n:KILLAFTER: right after it
   FAULT=name:n:VANISH      FAULT_PATH is removed just before the call
   FAULT=name:n:MOVE        FAULT_PATH gets the name FAULT_TO just before the call
   FAULT_EVER=1             also every later call
   FAULT_LOCKS=granted      every lock is granted, whoever holds it: as between hosts that share none
   FAULT_APPEARS=path       this file appears when the call fails
   FAULT_LOG=path           append one line per call

   Only writes to regular files count as "write". */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int countdown = -1;
static char fault_name[32], fault_kind[32];

static void setup(void) {
    const char *fault = getenv("FAULT");
    if (countdown != -1)
        return;
    countdown = 0;
    if (fault && sscanf(fault, "%31[^:]:%d:%31s", fault_name, &countdown, fault_kind) != 3)
        abort();
}

static void note(const char *name, const char *what) {
    const char *path = getenv("FAULT_LOG");
    char line[512];
    int fd, length;
    if (!path)
        return;
    fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT, 0600);
    length = snprintf(line, sizeof line, "%s %s\n", name, what);
    syscall(SYS_write, fd, line, length);
    syscall(SYS_close, fd);
}

/* 0: go on; 1: die after the call; -1: errno is set, fail. */
static int strikes(const char *name, const char *what) {
    setup();
    note(name, what);
    if (strcmp(name, fault_name) || !countdown || --countdown)
        return 0;
    if (getenv("FAULT_EVER"))
        countdown = 1;
    if (!strcmp(fault_kind, "KILLAFTER"))
        return 1;
    if (!strcmp(fault_kind, "VANISH")) {
        unlink(getenv("FAULT_PATH"));
        return 0;
    }
    if (!strcmp(fault_kind, "MOVE")) {
        rename(getenv("FAULT_PATH"), getenv("FAULT_TO"));
        return 0;
    }
    if (!strcmp(fault_kind, "KILL"))
        kill(getpid(), SIGKILL);
    if (getenv("FAULT_APPEARS"))
        syscall(SYS_close, syscall(SYS_openat, AT_FDCWD, getenv("FAULT_APPEARS"), O_WRONLY | O_CREAT, 0644));
    errno = atoi(fault_kind);
    return -1;
}

#define PASS(type, name, what, call)                                                                     \
    do {                                                                                                 \
        int struck = strikes(name, what);                                                                \
        type result;                                                                                     \
        if (struck < 0)                                                                                  \
            return -1;                                                                                   \
        result = call;                                                                                   \
        if (struck > 0)                                                                                  \
            kill(getpid(), SIGKILL);                                                                     \
        return result;                                                                                   \
    } while (0)

static const char *kind(int fd) {
    struct stat status;
    if (fstat(fd, &status))
        return "?";
    return S_ISREG(status.st_mode) ? "file" : S_ISDIR(status.st_mode) ? "folder" : "other";
}

ssize_t write(int fd, const void *data, size_t size) {
    if (strcmp(kind(fd), "file"))
        return syscall(SYS_write, fd, data, size);
    PASS(ssize_t, "write", "", syscall(SYS_write, fd, data, size));
}

int fsync(int fd) { PASS(int, "fsync", kind(fd), syscall(SYS_fsync, fd)); }

int fchmod(int fd, mode_t mode) { PASS(int, "fchmod", kind(fd), syscall(SYS_fchmod, fd, mode)); }

int linkat(int from, const char *name, int to, const char *target, int flags) {
    PASS(int, "linkat", target, syscall(SYS_linkat, from, name, to, target, flags));
}

int renameat(int from, const char *name, int to, const char *target) {
    PASS(int, "renameat", target, syscall(SYS_renameat2, from, name, to, target, 0));
}

int unlinkat(int at, const char *name, int flags) {
    PASS(int, "unlinkat", name, syscall(SYS_unlinkat, at, name, flags));
}

int mkdirat(int at, const char *name, mode_t mode) { PASS(int, "mkdirat", name, syscall(SYS_mkdirat, at, name, mode)); }

int utimensat(int at, const char *name, const struct timespec times[2], int flags) {
    PASS(int, "utimensat", name ? name : "", syscall(SYS_utimensat, at, name, times, flags));
}

static int locking(int fd, int command, void *argument) {
    static int (*original)(int, int, ...);
    if (!original)
        original = dlsym(RTLD_NEXT, "fcntl64") ? dlsym(RTLD_NEXT, "fcntl64") : dlsym(RTLD_NEXT, "fcntl");
    if (command == F_SETLK && getenv("FAULT_LOCKS"))
        return 0;
    if (command != F_SETLK)
        return original(fd, command, argument);
    PASS(int, "lock", kind(fd), original(fd, command, argument));
}

int fcntl(int fd, int command, ...) {
    va_list arguments;
    void *argument;
    va_start(arguments, command);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    return locking(fd, command, argument);
}

int fcntl64(int fd, int command, ...) {
    va_list arguments;
    void *argument;
    va_start(arguments, command);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    return locking(fd, command, argument);
}
