"""How nano's base is trained: for how many steps what, and how fast."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BaseSettings:
    """How the base is trained: ``sight_steps`` of the vision tower alone, then ``steps`` of questions about
    dies, in the last ``word_steps`` of which one of the questions is to repeat words. A share of ``said`` of
    the wafers is asked about in the words of descriptions, the others in the base's own. The loss of
    ``train.nano.choices`` counts ``choices`` times beside the others of the vision tower; where it counts,
    the vision tower goes on learning from all of them beside the questions."""

    sight_steps: int = 3000
    steps: int = 2000
    word_steps: int = 700
    batch: int = 32
    questions: int = 3
    said: float = 0.0
    choices: float = 0.0
    synthetic: float = 0.25
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 200
    decay: float = 0.35
    save_every: int = 200
    seed: int = 11

    @property
    def total(self) -> int:
        """Steps of both parts."""
        return self.sight_steps + self.steps

    def sees(self, step: int) -> bool:
        """Whether the vision tower learns alone at ``step``."""
        return step < self.sight_steps

    def repeats(self, step: int) -> bool:
        """Whether one of the questions at ``step`` is to repeat words."""
        return step >= self.total - self.word_steps


def learning_rate(step: int, settings: BaseSettings) -> float:
    """Constant, then linear to zero over the last ``decay`` of the steps with questions; both parts begin
    with a linear warm-up, since the text model's first step is the second part's."""
    within = step if settings.sees(step) else step - settings.sight_steps
    left = (settings.total - step) / (settings.decay * settings.steps)
    return settings.learning_rate * min((within + 1) / settings.warmup, 1.0, max(left, 0.0))
