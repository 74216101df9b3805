"""The device agent: the only code that ever runs an artifact, on this machine and on every other.

It travels to the device as one zip archive and needs Python 3.8, the standard library, numpy and the device's
runtime. It imports nothing of edgeprune. Two processes: the supervisor keeps files, locks and the conversation with
the host, and a worker, which it may kill, holds the runtime. A crash of the runtime is thus a result, not the end of
the conversation.
"""
