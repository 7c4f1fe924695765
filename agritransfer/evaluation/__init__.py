"""How good is a model, how certain is that, where does it fail, and which model is better?"""

import lazy_loader

# Loaded when first used, so that a command pays for what it needs and --help answers at once.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "trainer_metric": ["compute_metrics"],
    },
)
