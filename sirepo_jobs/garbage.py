"""How each of our processes keeps Python's collector of cyclic garbage: rarely, and off what stays anyway.

Nearly nothing of ours is cyclic. At Python's own settings a loaded supervisor spent a sixth of its CPU time
looking, mostly through the code and tables of its libraries.
"""

import gc
from typing import Final

#: So many more objects may be made than went before the young ones are looked through: some milliseconds.
YOUNG: Final = 50_000


def settle() -> None:
    """To be called when a process is set up: what is there now is never looked through again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 20, 20)
