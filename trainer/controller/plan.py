"""What a trainer controller's file asks for, as data. No torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from trainer.controller.metrics import Metric
from trainer.controller.rules import Rule

STEERING_ACTIONS = (
    "should_training_stop",
    "should_epoch_stop",
    "should_save",
    "should_evaluate",
    "should_log",
)


@dataclass(frozen=True)
class Operation:
    """:param log_format: of a LogControl; None for HFControls, which set transformers' own switches"""

    name: str
    log_format: str | None = None
    log_level: int = logging.INFO

    @property
    def actions(self) -> tuple[str, ...]:
        return STEERING_ACTIONS if self.log_format is None else ("should_log",)


@dataclass(frozen=True)
class Action:
    """One operation's action, `hfcontrols.should_save`."""

    operation: Operation
    name: str

    def __str__(self) -> str:
        return f"{self.operation.name}.{self.name}"

    @property
    def steers(self) -> bool:
        """Whether it changes what training does next, so that every rank must take it together."""
        return self.operation.log_format is None


@dataclass(frozen=True)
class Patience:
    """Acts once the rule was true more than `threshold` times, and then counts anew.

    :param resets: whether a false starts the count anew
    """

    threshold: int = 1
    resets: bool = True


@dataclass(frozen=True)
class Controller:
    """At its triggers: when the rule holds, and patience is at an end, the actions.

    :param log_level: at which taking an action is logged
    """

    name: str
    triggers: tuple[str, ...]
    rule: Rule
    actions: tuple[Action, ...]
    patience: Patience | None
    log_level: int

    @property
    def steers(self) -> bool:
        return any(action.steers for action in self.actions)


@dataclass
class ControllerPlan:
    """A file that is right.

    :param notices: a sentence for each part that will never act
    """

    metrics: list[Metric] = field(default_factory=list)
    controllers: list[Controller] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
