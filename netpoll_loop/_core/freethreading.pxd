"""Whether this Python has no GIL. A constant of the C compiler: what is for the other kind of build costs nothing.

What holds in the core where there is none:

  - The thread that has P touches the loop without a lock, as with the GIL. It is one thread at a time (handoff.pyx).
  - What any other thread schedules or cancels, be it by call_soon_threadsafe or not, is posted to `inbox`, under the
    loop's critical section. The thread that has P takes it from there.
  - What changes P's thread is done in the loop's critical section. Like the GIL, one is given up while its thread
    waits; unlike the GIL, only who asks for it is kept out.
  - Nothing is kept from one object for the next, or shared by all loops: no pool of handles, no shared Contexts.
    The templates of literal.pyx, which are, have a lock.
"""

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define NP_FREE_THREADED 1
    #else
    #define NP_FREE_THREADED 0
    #endif
    """
    const bint FREE_THREADED "NP_FREE_THREADED"
