"""A session's directory as its guest sees it: a FUSE file system, served by a process of its own per machine.

The guest's kernel asks over a serial port. Why not QEMU's own 9p: that keeps inside QEMU which files are open, so QEMU
refuses to freeze a guest with a mounted share. Here that is a table, which is given out while the guest is quiet and
which a fork's server begins with, so that processes go on with their open files, each in its own machine's directory.

It is a program: it imports nothing outside this package but the standard library, and is small.

    tree.py     which files the guest knows and has open; the only way to a path
    files.py    the answers to the guest's questions
    server.py   the ports, and the program
"""
