"""Parts that several providers use: the shell guest, its scripts, terminals, id-mapped mounts, the seccomp filter."""
