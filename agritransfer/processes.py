"""How does a process of ours begin and end without wasting time?"""

import atexit
import gc
import os

# What is imported stays: a collection after every 700 of its objects, Python's own choice, finds nothing.
OBJECTS_BETWEEN_COLLECTIONS = 50_000


def begin_process() -> None:
    """Called before torch is imported: fewer collections, a quick end, and memory that is quickly given."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    # The last collection, of everything that was imported, takes longer than some answers do.
    atexit.register(gc.freeze)
    # Linux hands torch large activations in pages of 2 MB in place of 4 kB, each of which it clears when first used.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
