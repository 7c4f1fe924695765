"""How many epochs of a strategy fit into the minutes that are left?"""

import math
from dataclasses import dataclass

# Training on a photo costs as many forward passes; measured by benchmarks/epoch_costs.py and rounded up.
FORWARD_PASSES = {"lora": 3.4, "finetune": 3.8}
# With a single epoch the learning rate would rise and fall before the photos are seen twice.
FEWEST_EPOCHS = 2


@dataclass(frozen=True)
class Costs:
    """What is known of the costs once the head is fitted, in seconds and photos.

    `photo`: a forward pass of one photo; `train` and `validation`: photos in each epoch; `start`: what every candidate
    needs beside its epochs, the fit of its head included; `end`: the scoring of the chosen one.
    """

    photo: float
    train: int
    validation: int
    start: float
    end: float

    def epoch(self, strategy: str) -> float:
        """The seconds of one epoch: training on the train photos and scoring the validation photos."""
        return self.photo * self.forward_passes(strategy)

    def forward_passes(self, strategy: str) -> float:
        """The forward passes that one epoch is worth."""
        return FORWARD_PASSES[strategy] * self.train + self.validation

    def training_seconds(self, seconds_left: float) -> float:
        """The seconds that a candidate may train for, so that the chosen one can still be scored."""
        return seconds_left - self.start - self.end

    def epochs(self, strategy: str, seconds_left: float, most: int) -> int:
        """The epochs that fit, at most `most`; 0 if they are too few to be worth a try."""
        fitting = min(most, math.floor(self.training_seconds(seconds_left) / self.epoch(strategy)))
        return fitting if fitting >= FEWEST_EPOCHS else 0

    def least(self, strategy: str) -> float:
        """The seconds that the fewest epochs worth a try would take, from the start to the scores."""
        return self.start + FEWEST_EPOCHS * self.epoch(strategy) + self.end
