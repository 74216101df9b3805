"""Boards that are not there: a whole one in QEMU, or one core of it, with the files that they boot from."""
