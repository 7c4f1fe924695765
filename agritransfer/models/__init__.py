"""How are models loaded or built, and which of their weights are trained?"""

import lazy_loader

# Loaded when first used, so that a command pays for what it needs and --help answers at once.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "freezing": ["train_layers", "trainable_line"],
        "layer_decay": ["parameter_groups_of"],
        "loading": ["load_backbone", "load_classifier"],
        "lora": ["add_lora"],
        "scratch": ["load_untrained"],
    },
)
