"""How is a model trained, resumed and saved?"""

import lazy_loader

# Loaded when first used, so that a command pays for what it needs and --help answers at once.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "linear_probe": ["begin_with_solved_head", "solve_head"],
        "run": ["score_run", "start_run", "write_results"],
        "saving": ["save_model"],
        "session": ["build_trainer", "train"],
        "trainer": ["ImageTrainer"],
    },
)
