"""What is to end the program, raised by somebody else's code in the midst of our own."""

from __future__ import annotations

import asyncio

__all__ = ["raise_soon"]


def raise_soon(error: BaseException) -> None:
    """If this is to end the program, have the running loop raise it in its next turn; where none runs, raise it now.

    So what has been begun comes to its end first: else a call might never get its outcome. Whatever else it is, asyncio
    would not let it end the program, either.
    """
    if not isinstance(error, (SystemExit, KeyboardInterrupt)):
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise error from None
    loop.call_soon(_raise, error)


def _raise(error: BaseException) -> None:
    raise error
