"""Makers of what lies under a file's name and is no file: a reader would wait, never end, or read the machine."""

import os
import socket


def fifo(path):
    os.mkfifo(path)


def listening_socket(path):
    """Bound by a short name, since that of a socket may have 107 bytes at most."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def directory(path):
    path.mkdir()


def zeros(path):
    path.symlink_to("/dev/zero")


def standard_input(path):
    path.symlink_to("/dev/stdin")


def kernel_log(path):
    """A regular file of no size, whose reader waits."""
    path.symlink_to("/proc/kmsg")


def own_memory(path):
    path.symlink_to("/proc/self/mem")


def itself(path):
    path.symlink_to(path.name)


def nothing(path):
    path.symlink_to("nothing")


SPECIAL = (fifo, listening_socket, directory, zeros, standard_input, kernel_log, own_memory, itself, nothing)
