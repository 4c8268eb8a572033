"""Says in plain words why netpoll_loop can't be imported in this interpreter, and lets an interpreter breathe.

The extension modules keep their types and freelists in static memory, once for each process: a second interpreter
(mod_wsgi, concurrent.interpreters) would share them with the first under another GIL.
"""

import importlib
import sys

_SECOND = "netpoll_loop can be used only in the main interpreter of a process, not in a subinterpreter"


def refuse_second() -> None:
    """Raises ImportError in any interpreter but the main one, as far as this Python can tell."""
    # Named so since 3.13, before that and since 3.9 the other way; not every build has them.
    for name in ("_interpreters", "_xxsubinterpreters"):
        try:
            interpreters = importlib.import_module(name)
            second = interpreters.get_current() != interpreters.get_main()
        except (ImportError, AttributeError, RuntimeError):
            continue
        if second:
            raise ImportError(_SECOND)
        return


def breathe() -> None:
    """Does nothing. But where it begins, the interpreter looks whether another thread has asked for the GIL."""


def explain(error: ImportError) -> None:
    """Raises ImportError with a clearer text than `error`'s, if it is a known one of the extension modules."""
    text = str(error)
    # CPython's text for an interpreter with a GIL of its own, and Cython's for one that shares the GIL.
    if "subinterpreters" in text or "Interpreter change detected" in text:
        raise ImportError(_SECOND) from error
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("netpoll_loop._core."):
        python = f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"
        raise ImportError(
            f"netpoll_loop's extension modules aren't built for this Python ({python}): {error.name} is missing. "
            "In a source tree, `make build` builds them"
        ) from error
