"""One rank of a run (`python -m trainer.train`, started by the parent).

config → tokenizer → data → model → PEFT → train → save, from top to bottom in `train`.
"""

from __future__ import annotations

from trainer.ending import end_with, report_failed_start
from trainer.streams import log_to_stderr, outlast_readers
from trainer.tether import end_with_starter

if __name__ == "__main__":
    # Before all other imports: they take seconds, and some of them keep the stderr that they find.
    end_with_starter()
    outlast_readers()
    report_failed_start()

import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerCallback

from airflow_provider_sft.contract.errors import InternalError, InterruptedRunError
from airflow_provider_sft.contract.names import LOG_LEVEL_ENV_VAR
from airflow_provider_sft.contract.settings import Settings, resolve_config
from trainer.accelerator import refuse_missing_gpus, take_accelerator
from trainer.activation import check_invocation
from trainer.arguments import build_training_args, effective_distributed
from trainer.attention import choose_attention
from trainer.callbacks import FiniteCallback, HeartbeatCallback, ProgressCallback, loss_limit
from trainer.checkpoints import CheckpointStore, recorded_step
from trainer.consensus import StopSignal, share_from_rank_zero
from trainer.controller.callback import build_controller
from trainer.data.prepare import PreparedData, prepare_data
from trainer.data.telling import describe_losses
from trainer.digests import Digests
from trainer.engine import Engine
from trainer.failures import classify_in_run
from trainer.files import volume_limits, write_json
from trainer.interruption import StopCallback
from trainer.learning import check_schedule
from trainer.model import LoadedTokenizer, find_new_tokens, grow_vocabulary, load_model, load_tokenizer
from trainer.progress import ProgressWriter, read_history, summarize_losses
from trainer.rank import RankChannel, RankOutcome, RunOrder
from trainer.resume import check_resume
from trainer.run_dir import STATISTICS_FILE
from trainer.samples import sample_after, sample_before
from trainer.save import model_kind_of, save_final
from trainer.summed_loss import SummedLossEngine, sums_loss
from trainer.trackers import build_trackers
from trainer.trained import Trained
from trainer.tuning import apply_peft, build_quantization

log = logging.getLogger("trainer")


def train(channel: RankChannel, order: RunOrder, stop: StopSignal) -> dict[str, Any]:
    """Tune the model that `order` describes; what the result should say about it comes back."""
    settings, output_dir = resolve_config(order.config), Path(order.output_dir)

    refuse_missing_gpus(wants_cpu=bool(settings.values.get("use_cpu")), say=channel.notice)
    args = build_training_args(settings, order)  # joins the other ranks
    resume_from = share_from_rank_zero(order.resume_from)
    loaded = load_tokenizer(settings, channel.notice)
    tokenizer = loaded.tokenizer

    digests = Digests(order.digests, channel.beat)
    data = prepare_rows(settings, tokenizer, digests, channel)
    write_json(output_dir / STATISTICS_FILE, dict(data.statistics)) if args.process_index == 0 else None
    if settings.values.get("do_dataprocessing_only"):
        return {"trained_token_share": data.statistics["trained_token_share"]}
    check_invocation(data.train, settings, tokenizer, say=channel.notice)
    check_schedule(args, data.train, data.validation)

    transformers.set_seed(args.seed)
    model, new_rows = load_base(settings, loaded, args, digests, say=channel.notice)
    sample_before(model, tokenizer, data.statistics, settings, output_dir)
    new_tokens = find_new_tokens(model, loaded, new_rows=new_rows)
    model = apply_peft(
        model,
        settings,
        tokenizer,
        new_rows=new_rows,
        new_tokens=new_tokens,
        resume_from=resume_from,
        say=channel.notice,
    )

    finite = FiniteCallback(math.inf if sums_loss(settings) else loss_limit(len(tokenizer)))
    engine = (SummedLossEngine if sums_loss(settings) else Engine)(
        model=model,
        args=args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=data.collator,
        processing_class=tokenizer,
        store=CheckpointStore(output_dir, keep=settings.values.get("save_total_limit")),
        facts={"config_sha256": order.config_sha256, "world_size": args.world_size, **order.checkpoint_facts},
        finite=finite,
    )
    stopping = StopCallback(stop, engine.consensus)
    controller = build_controller(
        settings, engine.consensus, evaluates=data.validation is not None, say=channel.notice
    )
    engine.use_callbacks(HeartbeatCallback(channel), finite, engine.weights, *controller, stopping)
    if engine.is_world_process_zero():
        engine.use_callbacks(*build_reporters(channel, order, settings, resume_from))

    check_resume(engine, resume_from, say=channel.notice)
    stop.install()
    engine.train(resume_from_checkpoint=resume_from)
    if stopping.stopped:
        raise InterruptedRunError(stopping.describe(engine.state.global_step))

    engine.check_weights()
    engine.weights.check(engine.model, args, on_notice=channel.notice)
    files = save_final(engine, Path(order.model_dir), new_rows=new_rows)
    facts = describe_training(engine, order, data.statistics)
    if engine.is_world_process_zero():
        Trained(order.model_dir, files, facts, channel.notices()).write(output_dir)
    if not stop.received:
        sample_after(engine.model, tokenizer, settings, output_dir)
    return facts


def prepare_rows(settings: Settings, tokenizer: Any, digests: Digests, channel: RankChannel) -> PreparedData:
    """The data, with a notice where little of it, or not all of a data_config, is used."""
    data = prepare_data(settings, tokenizer, digests=digests, say=log.info, beat=channel.beat)
    for sentence in (*data.notices, *describe_losses(data.statistics)):
        channel.notice(sentence)
    return data


def load_base(
    settings: Settings, loaded: LoadedTokenizer, args: Any, digests: Digests, *, say: Callable[[str], None]
) -> tuple[Any, int]:
    """The base model, with a row for every token, and by how many rows it grew.

    :raises NotFoundError: a file that shapes the run is not what it was when the attempt began
    """
    attention, quantization = choose_attention(settings), build_quantization(settings)
    model = load_model(
        settings, attention=attention, device=take_accelerator(args), quantization=quantization, say=say
    )
    digests.refuse_any_changed()
    multiple_of = settings.values["embedding_size_multiple_of"]
    return model, grow_vocabulary(model, loaded, multiple_of=multiple_of, say=say)


def describe_training(engine: Engine, order: RunOrder, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the result, once the model is saved."""
    return {
        "model_path": order.model_dir,
        "model_kind": model_kind_of(engine),
        "steps": engine.state.global_step,
        "epochs": round(engine.state.epoch or 0.0, 4),
        **summarize_losses(read_history(Path(order.output_dir))),
        "trained_tokens": engine.trained_tokens,
        "trained_token_share": statistics["trained_token_share"],
        "tokens_per_s": round(engine.tokens_per_s, 1),
        "distributed": effective_distributed(engine),
        "world_size": engine.args.world_size,
    }


def build_reporters(
    channel: RankChannel, order: RunOrder, settings: Settings, resume_from: str | None
) -> list[TrainerCallback]:
    """Who hears of rank 0's progress: people, the parent, the report and the trackers."""
    output_dir = Path(order.output_dir)
    writer = ProgressWriter(
        output_dir,
        attempt=order.attempt,
        resumed_from_step=recorded_step(Path(resume_from)) if resume_from else 0,
        training_logs_file=settings.values["training_logs_filename"],
    )
    return [ProgressCallback(writer), *build_trackers(settings, output_dir, say=channel.notice)]


def main() -> int:
    """Run one rank; how it ended goes to the parent through a file, so that it survives accelerate's launcher."""
    log_to_stderr(os.environ.get(LOG_LEVEL_ENV_VAR, "INFO").upper())
    channel = RankChannel.open(os.environ)
    channel.end_with_parent()
    order = channel.order()
    try:
        facts = train(channel, order, StopSignal())
    except Exception as error:
        failure = classify_in_run(error, order.config)
        if isinstance(failure, InternalError):
            log.exception("Unexpected failure of rank %d", channel.rank)
        channel.report_error(failure)
        # Orderly: torch's launcher must not take it for a failure and kill the ranks that still save.
        return 0 if isinstance(failure, InterruptedRunError) else int(failure.exit_code)
    for sentence in volume_limits():
        channel.notice(sentence)
    channel.report(RankOutcome(channel.rank, 0, facts=facts))
    return 0


if __name__ == "__main__":
    end_with(main)
