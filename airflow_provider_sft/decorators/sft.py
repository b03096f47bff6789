"""`@task.sft`: a function that returns a config becomes a tuning task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import DecoratedOperator, determine_kwargs, task_decorator_factory

from airflow_provider_sft.contract.outcome import Result
from airflow_provider_sft.operators.kubernetes import SFTTrainerOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, TaskDecorator


class SFTDecoratedOperator(DecoratedOperator, SFTTrainerOperator):
    """Calls the function on the worker and tunes by the config it returns, which is data: nothing in it is templated."""

    custom_operator_name = "@task.sft"
    template_fields: Sequence[str] = ("op_args", "op_kwargs", *SFTTrainerOperator.template_fields)
    # Functions need not be copied, and some cannot be.
    shallow_copy_attrs: Sequence[str] = ("python_callable",)

    def execute(self, context: Context) -> Result | None:
        self._call_function(context)
        return SFTTrainerOperator.execute(self, context)

    def look_for_room_again(self, context: Context, event: dict[str, Any]) -> Result | None:
        self._call_function(context)
        return SFTTrainerOperator.look_for_room_again(self, context, event)

    def _call_function(self, context: Context) -> None:
        arguments = {**context, **self.op_kwargs}
        self.config = self.python_callable(
            *self.op_args, **determine_kwargs(self.python_callable, self.op_args, arguments)
        )


def sft_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """`@task.sft(image="sft-trainer:1", gpus=1)`: parameters are those of :class:`SFTTrainerOperator`.

    :param python_callable: returns the config
    """
    return task_decorator_factory(
        python_callable=python_callable,
        multiple_outputs=False,
        decorated_operator_class=SFTDecoratedOperator,
        **kwargs,
    )
