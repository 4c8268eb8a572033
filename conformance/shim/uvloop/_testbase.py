"""uvloop's own test base, from the unpacked sdist, with one thing changed: which implementation a test believes in.

Some tests branch on `self.implementation` or `self.is_asyncio_loop()`. By default ours is "uvloop" there, so that a
test that asyncio is excused from ("bug in asyncio") runs. In the tests named here the branch is about what a loop
documents, or asks for uvloop's internals; there ours is "asyncio".
"""

import os
import pathlib

_source = pathlib.Path(os.environ["CONFORMANCE_UVLOOP"], "uvloop", "_testbase.py")
exec(compile(_source.read_text(), str(_source), "exec"), globals())

AS_ASYNCIO = {
    # asyncio's executor threads are named asyncio_0; the documentation of run_in_executor leaves the name to the loop.
    "test_thread_name_prefix_in_default_executor",
    # Task factories get the name as a keyword; since 3.8 the task's constructor keeps it, `set_name` isn't called.
    "test_set_task_name",
    # uvloop's own method transport._test__append_write_backlog.
    "test_remote_shutdown_receives_trailing_data",
    # Contexts (contextvars) of pause_writing() in write() and of data_received() after resume_reading(): the caller's
    # in asyncio.sslproto, which documents nothing about them.
    "test_create_connection_protocol",
    "test_create_ssl_server_connection_protocol",
}


class _Implementation:
    def __get__(self, test, owner=None):
        return "asyncio" if test is not None and test._testMethodName in AS_ASYNCIO else "uvloop"


UVTestCase.implementation = _Implementation()  # noqa: F821
UVTestCase.is_asyncio_loop = lambda self: self.implementation == "asyncio"  # noqa: F821
