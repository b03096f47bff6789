"""One attempt of one run, as its parent sees it. No torch."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.codec import Config
from airflow_provider_sft.contract.errors import (
    InternalError,
    InterruptedRunError,
    SFTError,
)
from airflow_provider_sft.contract.names import RUN_ID_ENV_VAR
from airflow_provider_sft.contract.outcome import Result
from airflow_provider_sft.contract.settings import Settings, resolve_config
from trainer.checkpoint_fit import describe_run
from trainer.checkpoints import CheckpointStore, checkpoint_step, recorded_step
from trainer.damaged import set_damaged_aside
from trainer.data.files import locate_data
from trainer.devices import find_gpus
from trainer.digests import Digests
from trainer.failures import classify_in_run
from trainer.files import volume_limits
from trainer.finish import finish_run
from trainer.identity import identify_run
from trainer.identity_v1 import find_v1_differences
from trainer.launch import Launch, plan_launch, rank_environment
from trainer.lock import RunLock
from trainer.model_files import check_model
from trainer.nodes import read_nodes
from trainer.outcome import failed_result, succeeded_result
from trainer.ownership import Action, decide_owner
from trainer.paths import check_inputs_stay, prove_places
from trainer.preflight import check_export, check_request, check_room
from trainer.progress import read_step
from trainer.rank import ParentChannel, RankOutcome, RunOrder
from trainer.resume_choice import asked_checkpoint, choose_checkpoint
from trainer.run_dir import RunDir
from trainer.stop import Interrupted, StopRequest
from trainer.supervise import LOCK_LOST, NOTHING_SAVED, Supervisor
from trainer.takeover import Directory, complete, find_over, make_room, take_directory
from trainer.tracker_settings import find_tracker_url, tracker_environment
from trainer.trained import Trained

log = logging.getLogger("trainer")


def tune(config: Config, environ: Mapping[str, str], scratch_dir: Path, stop: StopRequest) -> Result:
    """Run `config` to its end, or find it finished.

    :param scratch_dir: private to this attempt; parent and ranks talk there
    :raises SFTError: before the run had its output_dir; afterwards a failure is a result, and written there
    """
    settings = resolve_config(config)
    for notice in settings.notices:
        log.warning("%s", notice)
    run_dir = RunDir(Path(settings.values["output_dir"]))
    check_request(settings, environ)
    check_model(settings.values, environ)
    check_export(settings)
    digests = Digests.read(run_dir.path, lambda: _end_if_asked(stop))
    located = locate_data(settings.values, environ, digests)
    check_inputs_stay(settings.values, [file for source in located.sources for file in source.files])
    run_id = environ.get(RUN_ID_ENV_VAR, "")
    identity = identify_run(settings, located, digests, environ=environ, run_id=run_id)
    ask = functools.partial(
        decide_owner, run_dir, identity, lambda record: find_v1_differences(record, config, located)
    )
    if read_nodes(environ).rank > 0:
        if over := find_over(run_dir, ask, settings, log.warning):
            return succeeded_result(over)
        return _help_node_zero(config, settings, environ, scratch_dir, stop, digests)
    run_dir.prepare()
    prove_places(settings.values)

    with RunLock(run_dir.path, run_id, on_lost=stop.lose_lock):
        asks_for_room = settings.values.get("overwrite")
        decision = make_room(run_dir, identity, config, ask) if asks_for_room else ask()
        if decision.action is Action.REPORT_FINISHED and decision.result:
            log.info("This run finished before; its result stands.")
            return decision.result
        directory = Directory(run_dir, identity, digests, decision)
        return Attempt(config, settings, environ, scratch_dir, stop, directory).run()


def _end_if_asked(stop: StopRequest) -> None:
    if stop.count:
        raise InterruptedRunError(NOTHING_SAVED)


class Attempt:
    """From the newest whole checkpoint to a result, inside the lock."""

    def __init__(
        self,
        config: Config,
        settings: Settings,
        environ: Mapping[str, str],
        scratch_dir: Path,
        stop: StopRequest,
        directory: Directory,
    ) -> None:
        self.config, self.settings, self.environ = config, settings, environ
        self.scratch_dir, self.stop = scratch_dir, stop
        self.directory, self.run_dir, self.identity = directory, directory.run_dir, directory.identity
        self.store = CheckpointStore(self.run_dir.path)
        self.number = 0
        self.resumed_from_step: int | None = None
        self.channel: ParentChannel | None = None
        self.warnings: list[str] = []

    def run(self) -> Result:
        started = time.monotonic()
        launch = self._plan()
        set_damaged_aside(self.run_dir.path, self._warn)
        if sentence := self.directory.decision.sentence:
            self._warn(sentence)
        self.number = take_directory(self.directory, self.settings)
        self.run_dir.record(self.number, "started", gpus=launch.gpus, world_size=launch.world_size)
        try:
            facts = self._find_trained() or self._train(launch)
            result = succeeded_result(_reason(self.settings), **self._facts(started, facts))
            with self.stop.ends_at_once():
                finish_run(self.settings, self.run_dir.path, result)
            self._complete(result)
        except Interrupted:
            return self._fail(InterruptedRunError(_describe_left(facts)), started, _steps_of(facts))
        except SFTError as error:
            return self._fail(error, started)
        except Exception as error:  # a full volume is no internal error
            failure = classify_in_run(error, self.settings.values, TMPDIR=str(self.scratch_dir))
            if isinstance(failure, InternalError):
                log.exception("Unexpected failure of the parent")
            return self._fail(failure, started)
        return result

    def _complete(self, result: Result) -> None:
        if self.stop.lock_lost:
            raise InterruptedRunError(LOCK_LOST)
        self.run_dir.record(self.number, "ended", exit_code=0)
        result["gpu_s"] = round(self.run_dir.gpu_seconds(), 1)
        complete(self.run_dir, result)

    def _fail(self, error: SFTError, started: float, facts: Mapping[str, Any] | None = None) -> Result:
        if self.stop.lock_lost:  # what lies here is another run's
            return failed_result(InterruptedRunError(LOCK_LOST), attempt=self.number)
        self.store.clear_staging()  # half a checkpoint may be what fills the volume
        result = failed_result(error, **self._facts(started, facts or self._failed_facts()))
        try:
            self.run_dir.record(self.number, "ended", exit_code=int(error.exit_code))
            self.run_dir.write_result(result)
        except OSError as problem:
            log.warning("The result could not be written to %s: %s.", self.run_dir.path, problem.strerror)
        return result

    def _plan(self) -> Launch:
        return _plan_with_gpus(self.settings, self.environ, self.scratch_dir, warn=self._warn)

    def _warn(self, sentence: str) -> None:
        log.warning("%s", sentence)
        self.warnings.append(sentence)

    def _find_trained(self) -> Mapping[str, Any] | None:
        """What the result says of an earlier attempt that trained to the end, where its model is still whole."""
        if (trained := _read_trained(self.settings, self.run_dir.path, self._warn)) is None:
            return None
        log.info("Attempt %d goes on from the trained model in %s.", self.number, trained.model_dir)
        self.resumed_from_step = trained.facts["steps"]
        self.warnings += trained.notices
        return trained.facts

    def _train(self, launch: Launch) -> Mapping[str, Any]:
        gpus = launch.world_size if launch.gpus else 0
        check_room(self.settings, self.run_dir.path, gpus=gpus, warn=self._warn)
        self.store.clear_staging()
        Trained.forget(self.run_dir.path)
        checkpoint_facts = describe_run(self.settings.values, self.identity.weights_sha256)
        if resume_from := choose_checkpoint(self.settings, self.run_dir, checkpoint_facts, self._warn):
            log.info("Attempt %d resumes from %s.", self.number, resume_from.name)
            self.resumed_from_step = recorded_step(resume_from)
        model_dir = self.settings.values.get("save_model_dir") or self.settings.values["output_dir"]
        order = RunOrder(
            config=self.config,
            output_dir=str(self.run_dir.path),
            model_dir=str(model_dir),
            attempt=self.number,
            config_sha256=self.identity.config_sha256,
            data_sha256=self.identity.data_sha256,
            resume_from=str(resume_from) if resume_from else None,
            digests=self.directory.digests.as_json(),
            checkpoint_facts=checkpoint_facts,
        )
        self.channel = ParentChannel(self.scratch_dir, order)
        return _supervise(launch, self.settings, self.environ, self.channel, self.stop).facts

    def _facts(self, started: float, facts: Mapping[str, Any]) -> dict[str, Any]:
        said = self.channel.notices() if self.channel else []
        known = {
            "base_model": str(self.settings.values["model_name_or_path"]),
            "attempt": self.number,
            "wall_s": round(time.monotonic() - started, 1),
            "gpu_s": round(self.run_dir.gpu_seconds(), 1),
            "config_sha256": self.identity.config_sha256,
            "data_sha256": self.identity.data_sha256,
            "notices": [*self.settings.notices, *self.warnings, *volume_limits(), *said],
            **facts,
        }
        if self.resumed_from_step is not None:
            known["resumed_from_step"] = self.resumed_from_step
        if tracker_url := find_tracker_url(self.settings, self.run_dir.path):
            known["tracker_url"] = tracker_url
        if newest := self.store.newest():
            known.setdefault("last_checkpoint_step", checkpoint_step(newest))
        return known

    def _failed_facts(self) -> dict[str, Any]:
        """The step a failed attempt reached, from the progress it wrote."""
        step = read_step(self.run_dir.path, self.number)
        return {} if step is None else {"steps": step}


def _read_trained(settings: Settings, output_dir: Path, say: Callable[[str], None]) -> Trained | None:
    return Trained.read(output_dir, say) if asked_checkpoint(settings) is True else None


def _reason(settings: Settings) -> str:
    return "The data is prepared." if settings.values.get("do_dataprocessing_only") else "Tuned."


def _describe_left(facts: Mapping[str, Any]) -> str:
    if "model_path" in facts:
        return "Interrupted after the last step: the next attempt goes on from the trained model."
    return "Interrupted when the rows were prepared; nothing is lost."


def _steps_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    steps = facts.get("steps")
    return {"steps": steps, "last_checkpoint_step": steps} if steps else {}


def _supervise(
    launch: Launch,
    settings: Settings,
    environ: Mapping[str, str],
    channel: ParentChannel,
    stop: StopRequest,
) -> RankOutcome:
    env = rank_environment(launch, environ, channel.scratch_dir)
    env |= tracker_environment(settings, environ, Path(settings.values["output_dir"]))
    hang_timeout_s = float(settings.values["hang_timeout_s"])
    if stop.count:
        raise InterruptedRunError(NOTHING_SAVED)
    return Supervisor(launch, env, channel, stop, hang_timeout_s).run()


def _plan_with_gpus(
    settings: Settings, environ: Mapping[str, str], scratch_dir: Path, *, warn: Callable[[str], None]
) -> Launch:
    """:raises AcceleratorsMissingError: fewer GPUs are visible than were requested"""
    args = settings.values.get("accelerate_launch_args") or {}
    wants_cpu = bool(settings.values.get("use_cpu") or args.get("cpu"))
    gpus, doubts = find_gpus(environ, wants_cpu=wants_cpu)
    launch = plan_launch(args, environ, gpus=gpus, scratch_dir=scratch_dir)
    for doubt in doubts:
        warn(doubt)
    for notice in launch.notices:
        log.warning("%s", notice)
    return launch


def _help_node_zero(
    config: Config,
    settings: Settings,
    environ: Mapping[str, str],
    scratch_dir: Path,
    stop: StopRequest,
    digests: Digests,
) -> Result:
    """A node other than the first: it runs its ranks; node 0 locks, exports, reports and writes the result."""
    launch = _plan_with_gpus(settings, environ, scratch_dir, warn=log.warning)
    output_dir = str(settings.values["output_dir"])
    model_dir = str(settings.values.get("save_model_dir") or output_dir)
    # Rank 0 tells the other ranks where to resume: what node 0 found whole counts.
    order = RunOrder(
        config, output_dir, model_dir, attempt=0, config_sha256="", data_sha256="", digests=digests.as_json()
    )
    try:
        _supervise(launch, settings, environ, ParentChannel(scratch_dir, order), stop)
    except InterruptedRunError as error:
        return failed_result(error)
    return succeeded_result(
        f"Node {launch.nodes.rank} of {launch.nodes.count} did its part (pid {os.getpid()})."
    )
