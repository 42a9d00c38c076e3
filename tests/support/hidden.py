"""Processes that have given their command lines away for good."""

from __future__ import annotations

# Prints the pid of each, a line each, and lives for as long as they do. In the page of a command line may stand what
# the process needs itself, and then it dies of that: a new start has another layout.
PROGRAM = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None)
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
def hidden():
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        fields = open("/proc/self/stat").read().rpartition(") ")[2].split()
        libc.munmap(int(fields[45]) & ~4095, 4096)
        os.write(tell, b"x")
        while True:
            signal.pause()
    os.close(tell)
    if os.read(told, 1) != b"x":
        os.execv(sys.executable, sys.orig_argv)
    return pid
for pid in [hidden() for _ in range(int(sys.argv[1]))]:
    print(pid, flush=True)
signal.pause()
"""
