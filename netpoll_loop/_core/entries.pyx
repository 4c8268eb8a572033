# cython: language_level=3
"""Second entries of the loop's hottest methods, for arguments in their usual form: positional, with at most context= by name.

No tuple and no dictionary is made of them. Any other form goes to the method as it is written in scheduler.pyx, which also
says what is wrong with it.
"""

from cpython.object cimport PyObject

from netpoll_loop._core.freethreading cimport FREE_THREADED
from netpoll_loop._core.scheduler cimport Scheduler

import inspect
import sys
from asyncio import base_events as _base_events
from asyncio import tasks as _tasks

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        PyObject *tp_dict
    ctypedef struct PyMethodDef:
        const char *ml_name
        void *ml_meth
        int ml_flags
        const char *ml_doc
    int METH_FASTCALL
    int METH_KEYWORDS
    object PyDescr_NewMethod(PyTypeObject *type, PyMethodDef *method)
    object PyObject_Call(object callable, object args, object keywords)
    object PyObject_Vectorcall(object callable, PyObject **args, size_t count, PyObject *names)
    Py_ssize_t PyTuple_GET_SIZE(PyObject *tuple)
    void PyType_Modified(PyTypeObject *type)

cdef tuple context_only = ("context",)

ctypedef object (*fast_entry)(object self, PyObject **args, Py_ssize_t count, PyObject *names)


# The last two tuples that were found to be ("context",): that of the _asyncio module, whose
# string isn't interned, and that of a call in Python code.
cdef tuple usual_names = ("context",)
cdef tuple usual_names_before = ("context",)


cdef inline bint usual(PyObject *names) noexcept:
    if FREE_THREADED:
        return names is NULL or <tuple>names == context_only
    return names is NULL or names == <PyObject *>usual_names or names == <PyObject *>usual_names_before or learn(names)


cdef bint learn(PyObject *names) noexcept:
    global usual_names, usual_names_before
    if <tuple>names != context_only:
        return False
    usual_names_before = usual_names
    usual_names = <tuple>names
    return True


cdef inline PyObject *given_context(PyObject **args, Py_ssize_t count, PyObject *names) noexcept:
    return NULL if names is NULL else args[count]


cdef object any_form(object method, object self, PyObject **args, Py_ssize_t count, PyObject *names):
    return PyObject_Vectorcall(method.__get__(self), args, count, names)


cdef object fast_call_soon(object self, PyObject **args, Py_ssize_t count, PyObject *names):
    if count < 1 or not usual(names):
        return any_form(slow_call_soon, self, args, count, names)
    return (<Scheduler>self).soon(args[0], args + 1, count - 1, given_context(args, count, names))


cdef object fast_call_soon_threadsafe(object self, PyObject **args, Py_ssize_t count, PyObject *names):
    if count < 1 or not usual(names):
        return any_form(slow_call_soon_threadsafe, self, args, count, names)
    return (<Scheduler>self).soon_threadsafe(args[0], args + 1, count - 1, given_context(args, count, names))


cdef object fast_call_later(object self, PyObject **args, Py_ssize_t count, PyObject *names):
    if count < 2 or not usual(names) or (<Scheduler>self).overrides_call_at:
        return any_form(slow_call_later, self, args, count, names)
    return (<Scheduler>self).later(<object>args[0], args[1], args + 2, count - 2,
                                   given_context(args, count, names))


cdef object fast_create_task(object self, PyObject **args, Py_ssize_t count, PyObject *names):
    """What asyncio's does when there is no factory and no debug mode."""
    cdef Scheduler loop = self
    cdef dict keywords
    cdef Py_ssize_t i
    if count != 1 or loop._debug or loop._closed or loop._task_factory is not None:
        return any_form(slow_create_task, self, args, count, names)
    keywords = loop.keywords()
    if names is not NULL:
        keywords = keywords.copy()
        for i in range(PyTuple_GET_SIZE(names)):
            keywords[(<tuple>names)[i]] = <object>args[1 + i]
    return PyObject_Call(_tasks.Task, (<object>args[0],), keywords)


cdef PyMethodDef fast_methods[4]


cdef object replace_by(int i, object method, const char *name, fast_entry entry, const char *doc):
    """Puts the fast entry in the method's place; returns the method."""
    cdef PyTypeObject *cls = <PyTypeObject *>Scheduler
    fast_methods[i].ml_name = name
    fast_methods[i].ml_meth = <void *>entry
    fast_methods[i].ml_flags = METH_FASTCALL | METH_KEYWORDS
    fast_methods[i].ml_doc = doc
    (<dict>cls.tp_dict)[name.decode()] = PyDescr_NewMethod(cls, &fast_methods[i])
    PyType_Modified(cls)
    return method


cdef object slow_call_soon, slow_call_soon_threadsafe, slow_call_later, slow_create_task
cdef bytes create_task_doc


cdef int install() except -1:
    global slow_call_soon, slow_call_soon_threadsafe, slow_call_later, slow_create_task, create_task_doc
    slow_call_soon = replace_by(
        0, Scheduler.call_soon, b"call_soon", fast_call_soon,
        b"call_soon($self, callback, *args, context=None)\n--\n\nasyncio.loop.call_soon.")
    slow_call_soon_threadsafe = replace_by(
        1, Scheduler.call_soon_threadsafe, b"call_soon_threadsafe", fast_call_soon_threadsafe,
        b"call_soon_threadsafe($self, callback, *args, context=None)\n--\n\n"
        b"asyncio.loop.call_soon_threadsafe: from any thread, wakes the loop.")
    slow_call_later = replace_by(
        2, Scheduler.call_later, b"call_later", fast_call_later,
        b"call_later($self, delay, callback, *args, context=None)\n--\n\n"
        b"asyncio.loop.call_later; delay in seconds.")
    # The keywords are those of this Python's asyncio; 3.13.0 gets those of 3.13.3 (parameters.py).
    parameters = str(inspect.signature(_base_events.BaseEventLoop.create_task))[len("(self"):-1]
    if sys.version_info[:2] == (3, 13) and "**" not in parameters:
        parameters += ", **kwargs"
    create_task_doc = f"create_task($self{parameters})\n--\n\nasyncio.loop.create_task.".encode()
    slow_create_task = replace_by(3, Scheduler.create_task, b"create_task", fast_create_task, create_task_doc)


install()
