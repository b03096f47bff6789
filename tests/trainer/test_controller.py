"""The trainer controller: the peer's YAML, safe rules, patience, and the same decision on every rank."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import time

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from airflow_provider_sft.contract.errors import ConfigError
from tests.trainer.here import run_here, train_here
from trainer.consensus import Consensus
from trainer.controller.callback import ControllerCallback
from trainer.controller.file import read_controller_plan
from trainer.controller.log_format import fill_in
from trainer.controller.metrics import EVENTS, Metric
from trainer.controller.plan import STEERING_ACTIONS
from trainer.controller.rules import RuleError, compile_rule

LOSS_BELOW_1 = """
controller_metrics:
  - name: loss
    class: Loss
controllers:
  - name: loss-controller
    triggers: [on_log]
    rule: loss["loss"] < 1.0
    operations: [hfcontrols.should_training_stop]
"""
# The peer's example with patience, for evaluation.
EVAL_PATIENCE = """
controller_metrics:
  - name: eval_loss_window
    class: HistoryBasedMetric
    arguments:
      window_size: 2
controllers:
  - name: epoch_level_eval_loss_patience
    triggers:
      - on_epoch_end
    rule: len(eval_loss_window["metrics"]) > 0 and eval_loss_window["metrics"]["eval_loss"][-1] > 2
    patience:
      patience_threshold: 2
    operations:
      - hfcontrols.should_training_stop
"""


def write(tmp_path, text):
    path = tmp_path / "controller.yaml"
    path.write_text(text)
    return path


def plan_of(tmp_path, text, *, evaluates=True):
    return read_controller_plan(write(tmp_path, text), evaluates=evaluates)


class Bench:
    """A callback driven by hand with transformers' own objects."""

    def __init__(self, tmp_path, text, *, consensus=None):
        self.notices = []
        plan = plan_of(tmp_path, text)
        self.callback = ControllerCallback(
            plan, consensus or Consensus(), model_dir="/model", say=self.notices.append
        )
        self.args = TrainingArguments(output_dir=str(tmp_path / "out"), report_to="none", use_cpu=True)
        self.state = TrainerState(max_steps=10, global_step=1, epoch=0.25)

    def log(self, **logs):
        self.state.log_history.append({"epoch": self.state.epoch, "step": self.state.global_step, **logs})

    def fire(self, event):
        control = TrainerControl()
        getattr(self.callback, event)(self.args, self.state, control, model=None)
        return control


def test_a_rule_that_holds_takes_its_operation(tmp_path):
    bench = Bench(tmp_path, LOSS_BELOW_1)
    bench.log(loss=1.3)
    assert not bench.fire("on_log").should_training_stop
    bench.log(loss=0.9)
    assert bench.fire("on_log").should_training_stop
    assert bench.notices == [
        "Trainer controller 'loss-controller' ended training at step 1 of 10: loss[\"loss\"] < 1.0"
    ]


def test_a_rule_on_another_event_is_not_asked(tmp_path):
    bench = Bench(tmp_path, LOSS_BELOW_1)
    bench.log(loss=0.9)
    assert not bench.fire("on_step_end").should_training_stop


def test_a_metric_without_a_value_yet_makes_the_rule_wait(tmp_path):
    bench = Bench(tmp_path, LOSS_BELOW_1)
    bench.log(eval_loss=0.1)
    assert not bench.fire("on_log").should_training_stop


@pytest.mark.parametrize(
    "rule",
    [
        "loss != 2.0",
        "not loss",
        "2.0 != loss",
        "not (loss == 2.0)",
        "loss not in [2.0]",
        'loss["loss"] != 2.0',
    ],
)
def test_rule_on_a_metric_without_a_value_is_not_met_and_said_once(tmp_path, rule):
    bench = Bench(tmp_path, LOSS_BELOW_1.replace('loss["loss"] < 1.0', rule))
    assert not bench.fire("on_log").should_training_stop
    bench.fire("on_log")
    bench.fire("on_train_end")
    (notice,) = bench.notices
    assert notice.endswith(f"at on_log never acted: a metric in its rule never had a value: {rule}")


def test_rule_that_asks_whether_a_metric_has_a_value_is_answered(tmp_path):
    for rule, stops in (("loss is None", True), ("loss == None", True), ("loss != None", False)):
        bench = Bench(tmp_path, LOSS_BELOW_1.replace('loss["loss"] < 1.0', rule))
        assert bench.fire("on_log").should_training_stop == stops


@pytest.mark.parametrize("action", STEERING_ACTIONS)
def test_each_switch_of_transformers_can_be_set(tmp_path, action):
    bench = Bench(tmp_path, LOSS_BELOW_1.replace("should_training_stop", action))
    bench.log(loss=0.9)
    control = bench.fire("on_log")
    set_switches = [name for name in STEERING_ACTIONS if getattr(control, name)]
    assert set_switches == [action]


def test_steering_actions_are_transformers_own():
    names = {field.name for field in dataclasses.fields(TrainerControl)}
    assert set(STEERING_ACTIONS) == {name for name in names if name.startswith("should_")}


def test_patience_acts_once_the_count_of_true_exceeds_the_threshold(tmp_path):
    bench = Bench(tmp_path, EVAL_PATIENCE)
    bench.log(eval_loss=2.5)
    assert [bench.fire("on_epoch_end").should_training_stop for _ in range(6)] == [
        False, False, True, False, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "acts"),
    [
        ("reset_on_failure", [False, False, False, False, False]),
        ("no_reset_on_failure", [False, False, False, True, False]),
    ],
)
def test_a_false_between_resets_patience_unless_told_otherwise(tmp_path, mode, acts):
    bench = Bench(tmp_path, EVAL_PATIENCE.replace("threshold: 2", f"threshold: 2\n      mode: {mode}"))
    outcomes = []
    for eval_loss in (2.5, 2.5, 1.0, 2.5, 2.5):
        bench.log(eval_loss=eval_loss)
        outcomes.append(bench.fire("on_epoch_end").should_training_stop)
    assert outcomes == acts


def test_patience_goes_on_after_a_resume_from_a_checkpoint(tmp_path):
    first = Bench(tmp_path, EVAL_PATIENCE)
    first.log(eval_loss=2.5)
    first.fire("on_epoch_end")
    first.fire("on_epoch_end")
    first.state.save_to_json(str(tmp_path / "state.json"))
    resumed = Bench(tmp_path, EVAL_PATIENCE)
    resumed.state = TrainerState.load_from_json(str(tmp_path / "state.json"))
    resumed.fire("on_train_begin")
    assert resumed.fire("on_epoch_end").should_training_stop


def test_history_window_holds_the_latest_values_by_name(tmp_path):
    state = TrainerState(global_step=3)
    for step, loss in enumerate((3.0, 2.0, 1.0), start=1):
        state.log_history.append({"loss": loss, "epoch": step / 4, "step": step})
    state.log_history.append({"eval_loss": 5.0, "epoch": 0.75, "step": 3})
    window = Metric("w", "HistoryBasedMetric", 2).read("on_step_end", state, rank=0)
    assert window == {
        "training_loss": {"loss": [2.0, 1.0], "steps": [2, 3], "epoch": [0.5, 0.75]},
        "metrics": {"eval_loss": [5.0], "epoch": [0.75], "steps": [3]},
        "window_size": 2,
    }


def test_an_evaluation_counts_from_on_evaluate_on_not_from_its_log(tmp_path):
    state = TrainerState(log_history=[{"eval_loss": 5.0, "epoch": 0.75, "step": 3}])
    metric = Metric("e", "EvalMetrics")
    assert metric.read("on_log", state, rank=0) is None
    assert metric.read("on_evaluate", state, rank=0)["eval_loss"] == 5.0


def test_sample_of_the_training_state_has_transformers_fields():
    fields = {field.name for field in dataclasses.fields(TrainerState)} | {"is_final"}
    assert set(Metric("s", "TrainingState").sample()) == fields
    assert set(Metric("s", "TrainingState").read("on_log", TrainerState(), rank=0)) == fields


def test_log_control_fills_in_metrics_as_the_peer_does(tmp_path, caplog):
    text = """
controller_metrics:
  - {name: trainer_state, class: TrainingState}
  - {name: training_loss, class: Loss}
  - {name: per_process_state, class: PerProcessState}
operations:
  - name: logger
    class: LogControl
    arguments:
      log_format: 'Step: {trainer_state[global_step]}, Rank: {per_process_state[rank]}, loss = {training_loss[loss]:.1f}'
      log_level: warning
  - {name: saver, class: LogControl, arguments: {log_format: '{event_name} {control_name} {path} {args.output_dir}', log_level: info}}
controllers:
  - {name: line, triggers: [on_log], rule: training_loss != None, operations: [logger.should_log]}
  - {name: save, triggers: [on_save], rule: True, operations: [saver.should_log]}
"""
    bench = Bench(tmp_path, text)
    bench.log(loss=0.94)
    with caplog.at_level(logging.INFO, logger="trainer.controller"):
        bench.fire("on_log")
        bench.fire("on_save")
    out = f"{tmp_path}/out"
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("WARNING", "Step: 1, Rank: 0, loss = 0.9"),
        ("INFO", f"on_save save {out}/checkpoint-1 {out}"),
    ]


def test_the_end_of_training_is_told_as_the_final_save(tmp_path, caplog):
    text = """
controller_metrics: [{name: s, class: TrainingState}]
operations: [{name: l, class: LogControl, arguments: {log_format: 'Final model in {path}', log_level: info}}]
controllers: [{name: c, triggers: [on_save], rule: 's["is_final"] == True', operations: [l.should_log]}]
"""
    bench = Bench(tmp_path, text)
    with caplog.at_level(logging.INFO, logger="trainer.controller"):
        bench.fire("on_save")
        bench.fire("on_train_end")
    assert [record.message for record in caplog.records] == ["Final model in /model"]


class OtherRankSays(Consensus):
    """Stands for the all-reduce with a rank whose rule gave `outcome`."""

    def __init__(self, outcome):
        self.outcome = outcome

    def any(self, *flags):
        others = [self.outcome is not None, bool(self.outcome)] * (len(flags) // 2)
        return [mine or other for mine, other in zip(flags, others, strict=True)]


def test_what_any_rank_says_of_steering_all_do(tmp_path):
    bench = Bench(tmp_path, LOSS_BELOW_1, consensus=OtherRankSays(True))
    bench.log(loss=5.0)
    assert bench.fire("on_log").should_training_stop


def test_keys_of_metrics_can_be_written_as_attributes():
    samples = {"loss": Metric("loss", "Loss").sample()}
    assert compile_rule("loss.loss < 2 and loss.get('loss') == 1", samples).evaluate({"loss": {"loss": 1.0}})


WRONG_RULES = {
    "loss['los'] < 1": "looks for 'los' in loss, which has 'loss', .* Did you mean 'loss'\\?",
    "los['loss'] < 1": "names 'los', which is no metric of this file and no function. Did you mean 'loss'\\?",
    "loss < 1": "cannot be evaluated: '<' not supported between",
    "loss['loss']": "gives 1.0, which is neither true nor false",
    "loss['loss'] <": "is not a Python expression",
    "x = 1": "is not a Python expression",
    "state['epcoh'] > 1": "looks for 'epcoh' in state, .* Did you mean 'epoch'\\?",
    "False and state['epcoh'] > 1": "looks for 'epcoh' in state",
    "window['training_loss']['lss'][-1] > 1": "looks for 'lss'",
    "input('password')": "calls 'input'",
    "__import__('os').system('id')": "calls",
    "loss.__class__ == 1": "reads '__class__'",
    "loss.keys.__self__ == 1": "reads '__self__'",
    "().__class__.__bases__[0] == 1": "reads '__",
    "'{0.__class__}'.format(loss) == ''": "calls \"'{0.__class__}'.format\"",
    "(lambda: 1)() == 1": "calls 'lambda: 1'",
    "f'{loss}' == ''": "uses JoinedStr",
    "len([0] * 10000000000) > 1": "cannot be evaluated: \\[0\\] is not a number",
    "len('%999999999d' % 1) > 1": "cannot be evaluated: '%999999999d' is not a number",
    "9**9**9**9 > 1": "raises 9 to",
    "2**99999999 > 1": "raises 2 to",
    "1 << 9999 > 1": "cannot be evaluated: Operator",
    "len([a for a in state.log_history for b in [1,2] if c]) > 1": "names 'c'",
    "not " * 450 + "True": "cannot be evaluated: maximum recursion|is not a Python",
    "1 + " * 600 + "1 > 0": "has 2\\d+ characters; 2000 are allowed",
}


@pytest.mark.parametrize("text", WRONG_RULES)
def test_wrong_or_hostile_rule_is_refused_at_once(text):
    samples = {
        "loss": Metric("loss", "Loss").sample(),
        "state": Metric("state", "TrainingState").sample(),
        "window": Metric("window", "HistoryBasedMetric").sample(),
    }
    began = time.monotonic()
    with pytest.raises(RuleError, match=WRONG_RULES[text]):
        compile_rule(text, samples)
    assert time.monotonic() - began < 1


RIGHT_RULES = [
    "window['training_loss']['loss'][0] < window['training_loss']['loss'][-1] and len(window['training_loss']['loss']) == window['window_size']",
    "len(window['metrics']) > 0 and window['metrics']['eval_accuracy_of_mine'][-1] > 2.2 and state['epoch'] > 2",
    "loss != None",
    "math_sqrt(abs(loss['loss'])) >= 1 and round(loss.loss, 2) in (1.0, 2.0)",
    "sum([value for value in window.training_loss.loss if value > 0]) > 0",
    "(state['epoch'] > 0.1) & (loss['loss'] > 0) if rank['rank'] == 0 else False",
    "max(window['training_loss']['loss']) < 2 or rand() < 2",
]


@pytest.mark.parametrize("text", RIGHT_RULES)
def test_rules_as_people_write_them_hold_on_samples(text):
    kinds = {
        "loss": "Loss",
        "state": "TrainingState",
        "window": "HistoryBasedMetric",
        "rank": "PerProcessState",
    }
    samples = {name: Metric(name, kind).sample() for name, kind in kinds.items()}
    assert compile_rule(text, samples).evaluate(samples) in (True, False)


GOOD = "controllers: [{name: c, triggers: [on_log], rule: 'True', operations: [hfcontrols.should_save]}]"
WRONG_FILES = {
    "- a": 'controller.yaml: the file: is ["a"]. Write controller_metrics, operations and controllers.',
    "controlers: []": "controller.yaml: the file: has an unknown key 'controlers'. Did you mean 'controllers'?",
    "controller-metrics: []\n" + GOOD: "has an unknown key 'controller-metrics'. Did you mean 'controller_metrics'?",
    "controllers: []\ncontrollers: []": "controller.yaml is not YAML: line 2: 'controllers' stands twice",
    "controllers: [": "controller.yaml is not YAML: ",
    GOOD.replace("on_log", "on_logg"): "controllers[0] (c): trigger 'on_logg' is no event. Did you mean 'on_log'?",
    GOOD.replace("should_save", "should_sav"): "operation 'hfcontrols.should_sav' does not exist. Did you mean 'hfcontrols.should_save'?",
    GOOD.replace("rule: 'True', ", ""): "controllers[0] (c): lacks 'rule'.",
    GOOD.replace("'True'", "3"): "controllers[0] (c): rule is 3. Write an expression in quotes.",
    GOOD.replace("[on_log]", "on_log"): "triggers is 'on_log'. Write a list with at least one entry.",
    GOOD.replace("}]", ", patience: {patience_treshold: 1}}]"): "patience: has an unknown key 'patience_treshold'. Did you mean 'patience_threshold'?",
    GOOD.replace("}]", ", patience: {patience_threshold: -1}}]"): "patience_threshold is -1. Give a whole number of at least 0.",
    GOOD.replace("}]", ", patience: {mode: reset}}]"): "mode is 'reset'. It takes reset_on_failure, no_reset_on_failure.",
    GOOD.replace("}]", ", config: {trigger_log_level: loud}}]"): "trigger_log_level is 'loud'. It takes critical",
    "controller_metrics: [{name: m, class: Los}]\n" + GOOD: "class is 'Los'. Did you mean 'Loss'?",
    "controller_metrics: [{name: m, class: HistoryBasedMetric, arguments: {window_size: 0}}]\n" + GOOD: "window_size is 0. Give a number above 0, or -1 for all.",
    "controller_metrics: [{name: m, class: Loss, arguments: {window: 1}}]\n" + GOOD: "has an unknown key 'window'. It takes none.",
    "controller_metrics: [{name: m, class: Loss}, {name: m, class: Loss}]\n" + GOOD: "has the name of another metric",
    "operations: [{name: l, class: LogControl}]\n" + GOOD: "arguments: lacks 'log_format' and 'log_level'.",
    "operations: [{name: l, class: LogControl, arguments: {log_format: '{los}', log_level: info}}]\n" + GOOD: "log_format fills in {los}, but 'los' is no metric of this file.",
    "operations: [{name: l, class: LogControl, arguments: {log_format: '{', log_level: info}}]\n" + GOOD: "log_format is not a format",
    "operations: [{name: l, class: LogControl, arguments: {log_format: '{state:>99999}', log_level: info}}]\n" + GOOD: "which is too wide",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG_FILES)
def test_mistake_in_the_file_is_one_sentence(tmp_path, text):
    with pytest.raises(ConfigError) as raised:
        plan_of(tmp_path, text)
    assert WRONG_FILES[text] in str(raised.value)


def test_all_mistakes_are_told_together(tmp_path):
    with pytest.raises(ConfigError) as raised:
        plan_of(tmp_path, GOOD.replace("on_log", "on_logg").replace("should_save", "should_sav"))
    assert len(str(raised.value).splitlines()) == 2


def test_evaluating_without_evaluation_data_is_a_mistake(tmp_path):
    with pytest.raises(
        ConfigError, match="should_evaluate has nothing to evaluate on. Add validation_data_path"
    ):
        plan_of(tmp_path, GOOD.replace("should_save", "should_evaluate"), evaluates=False)


def test_a_metric_that_never_has_a_value_is_said(tmp_path):
    plan = plan_of(tmp_path, "controller_metrics: [{name: m, class: EvalMetrics}]\n" + GOOD, evaluates=False)
    assert plan.notices == [
        "controller.yaml: metric 'm' never has a value: nothing is evaluated. Set eval_strategy."
    ]


def test_a_key_that_turns_out_missing_ends_the_run(tmp_path):
    rule = 'loss["loss"] < 1.0', 'loss["mine_own_metric"] < 1.0'
    bench = Bench(tmp_path, LOSS_BELOW_1.replace(*rule))
    bench.log(loss=1.0)
    with pytest.raises(
        ConfigError, match="Trainer controller 'loss-controller': the rule .* 'mine_own_metric'"
    ):
        bench.fire("on_log")


def test_log_lines_read_no_attributes():
    class Secret:
        password = "hunter2"

    assert fill_in("{s.password} {d[a].b} {d[x]}", {"s": Secret(), "d": {"a": {"b": 1}}}) == "(none) 1 (none)"


def test_every_event_has_a_method_of_its_own():
    missing = [e for e in EVENTS if e != "on_init_end" and e not in vars(ControllerCallback)]
    assert missing == []


def test_the_file_is_read_without_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from trainer.controller.file import read_controller_plan as read;"
        "read(Path(sys.argv[1]), evaluates=True); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(write(tmp_path, LOSS_BELOW_1))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"


def test_a_run_stops_early_saves_and_says_so(lora_config, tmp_path):
    text = LOSS_BELOW_1.replace('loss["loss"] < 1.0', 'loss["step"] >= 3').replace(
        "[hfcontrols.should_training_stop]", "[hfcontrols.should_save, hfcontrols.should_training_stop]"
    )
    config = {**lora_config, "trainer_controller_config_file": str(write(tmp_path, text))}
    train_here(config, tmp_path / "scratch")
    result = run_here(config)  # which finds it trained, and does the rest
    assert result == json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["status"], result["steps"], result["last_checkpoint_step"]) == ("succeeded", 3, 3)
    assert any("ended training at step 3 of 8" in notice for notice in result["notices"])


def test_two_ranks_stop_together_when_only_one_of_them_says_so(run_trainer, lora_config, tmp_path):
    text = """
controller_metrics: [{name: process, class: PerProcessState}, {name: s, class: TrainingState}]
controllers:
  - name: second-rank
    triggers: [on_step_end]
    rule: process["rank"] == 1 and s["global_step"] >= 2
    operations: [hfcontrols.should_training_stop]
"""
    config = {**lora_config, "trainer_controller_config_file": str(write(tmp_path, text))}
    config["accelerate_launch_args"] = {"num_processes": 2}
    run = run_trainer(config, SET_NUM_PROCESSES_TO_NUM_GPUS="False")
    assert (run.result["steps"], run.result["world_size"]) == (2, 2)


def test_a_mistake_ends_the_run_before_the_model_loads(lora_config, tmp_path):
    config = {
        **lora_config,
        "trainer_controller_config_file": str(write(tmp_path, GOOD.replace("on_log", "on_logs"))),
    }
    result = run_here(config)
    assert result["exit_code"] == 64
    assert result["reason"] == (
        "controller.yaml: controllers[0] (c): trigger 'on_logs' is no event. Did you mean 'on_log'?"
    )
    assert not (tmp_path / "out").exists()
