import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_sft.groups import check_limits
from airflow_provider_sft.sweep import choose_best, sweep_configs


def test_sweep_makes_each_combination_with_a_directory_of_its_own():
    configs = sweep_configs({"output_dir": "/o", "x": 1}, learning_rate=[1e-5, 5e-5], r=[8])
    assert configs == [
        {"output_dir": "/o/learning_rate=1e-05,r=8", "x": 1, "learning_rate": 1e-5, "r": 8},
        {"output_dir": "/o/learning_rate=5e-05,r=8", "x": 1, "learning_rate": 5e-5, "r": 8},
    ]


def test_best_result_has_the_lowest_metric():
    assert choose_best([{"eval_loss": 2.0}, {"eval_loss": 1.0}, {}, None]) == {"eval_loss": 1.0}


def test_best_result_has_the_highest_metric_where_more_is_better():
    results = [{"tokens_per_s": 2.0}, {"tokens_per_s": 1.0}]
    assert choose_best(results, metric="tokens_per_s", mode="max") == results[0]


def test_best_result_of_none_says_what_is_missing():
    with pytest.raises(AirflowFailException, match="None of 1 results has 'eval_loss'"):
        choose_best([{"train_loss_last": 1.0}, None])


def test_gate_lets_a_good_model_pass():
    result = {"eval_loss": 1.0}
    assert (
        check_limits(
            result, figures={"accuracy": 0.9}, at_most={"eval_loss": 1.0}, at_least={"accuracy": 0.9}
        )
        is result
    )


@pytest.mark.parametrize("result", [{"eval_loss": 2.0}, {}])
def test_gate_stops_a_bad_model_or_one_of_unknown_quality(result):
    with pytest.raises(AirflowFailException, match="eval_loss is .*, at most 1.5 was wanted"):
        check_limits(result, at_most={"eval_loss": 1.5}, at_least={})
