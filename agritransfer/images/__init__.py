"""How are photos decoded, preprocessed, augmented and cached?"""

import lazy_loader

# Loaded when first used, so that a command pays for what it needs and --help answers at once.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "pixel_cache": ["PixelStore"],
    },
)
