"""Disks that know no locks, whose folders can't be synced, or whose quota is used up, for whole
programs: a C library that they load first says so in the system's place."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int refuse(const char *variable) {
    const char *number = getenv(variable);
    if (number) errno = atoi(number);
    return number != NULL;
}

int flock(int descriptor, int operation) {
    int (*next)(int, int) = dlsym(RTLD_NEXT, "flock");
    return refuse("NO_LOCKS") ? -1 : next(descriptor, operation);
}

static int control(const char *name, int descriptor, int command, void *argument) {
    int (*next)(int, int, ...) = dlsym(RTLD_NEXT, name);
    if ((command == F_SETLK || command == F_SETLKW) && refuse("NO_LOCKS")) return -1;
    return next(descriptor, command, argument);
}

#define CONTROL(name)                                   \
    int name(int descriptor, int command, ...) {        \
        va_list arguments;                              \
        va_start(arguments, command);                   \
        void *argument = va_arg(arguments, void *);     \
        va_end(arguments);                              \
        return control(#name, descriptor, command, argument); \
    }
CONTROL(fcntl)
CONTROL(fcntl64)

int fsync(int descriptor) {
    int (*next)(int) = dlsym(RTLD_NEXT, "fsync");
    struct stat found;
    int is_folder = fstat(descriptor, &found) == 0 && S_ISDIR(found.st_mode);
    return is_folder && refuse("NO_FSYNC") ? -1 : next(descriptor);
}
"""


QUOTA_SOURCE = r"""
static int is_over(int descriptor, size_t size) {
    const char *place = getenv("QUOTA_PLACE");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (!place || length < 0 || size == 0) return 0;
    path[length] = 0;
    if (strncmp(path, place, strlen(place))) return 0;
    errno = EDQUOT;
    return 1;
}

ssize_t write(int descriptor, const void *bytes, size_t size) {
    ssize_t (*next)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    return is_over(descriptor, size) ? -1 : next(descriptor, bytes, size);
}
"""


def used_up_quota(folder: Path, place: Path) -> dict[str, str]:
    """Return the environment of programs whose quota in `place` is used up."""
    return {**_loading(folder, SOURCE + QUOTA_SOURCE), "QUOTA_PLACE": str(place)}


def odd_disk(folder: Path, locks: int = errno.ENOLCK, fsync: int = errno.EINVAL) -> dict[str, str]:
    """Return the environment of programs for which locks and the syncing of folders so fail."""
    numbers = {"NO_LOCKS": str(locks), "NO_FSYNC": str(fsync)}
    return _loading(folder, SOURCE) | numbers


def _loading(folder: Path, code: str) -> dict[str, str]:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = folder / "odd_disk.c", folder / "odd_disk.so"
    source.write_text(code)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}
