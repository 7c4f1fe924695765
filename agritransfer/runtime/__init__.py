"""What does every process need, whatever the command?"""

import lazy_loader

# Loaded when first used, so that a command pays for what it needs and --help answers at once.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "command_line": ["parse_args"],
        "process": ["say"],
    },
)
