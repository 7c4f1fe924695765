"""Which photos are there, and which label and split does each have?"""

import lazy_loader

# Loaded when first used, so that a command pays for what it needs and --help answers at once.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dataset": ["Splits", "load_photos", "load_splits"],
    },
)
