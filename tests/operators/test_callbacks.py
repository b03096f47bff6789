"""KubernetesPodOperator's callbacks, called by SFTTrainerOperator with what Airflow documents."""

from tests.operators.cluster import MODES, tune
from tests.operators.recorder import RECORDER, recorded


@MODES
def test_callbacks_are_told_of_the_pod_and_its_lines(desk, deferrable):
    outcome, task = tune(desk.stand_in(deferrable=deferrable, callbacks=RECORDER, stand_in_line="loading"))
    assert task.state == "success", outcome.log
    name = desk.kube.created_pods[0]["metadata"]["name"]
    here = [] if deferrable else [("on_pod_starting", name), ("line", name)]
    assert recorded(outcome.log) == [
        ("on_pod_manifest_created", "tune"),
        ("on_pod_creation", name),
        *here,
        ("on_pod_completion", name),
        ("on_pod_teardown", name),
        ("on_pod_cleanup", name),
    ]
