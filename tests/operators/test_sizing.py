import pytest

from airflow_provider_sft.sizing import choose_sizes

BASE = {
    "model_name_or_path": "/llama/13B",
    "training_data_path": "/d.jsonl",
    "output_dir": "/output/run",
    "dataset_text_field": "output",
    "response_template": "\n### Label:",
}


def choose(config=BASE, *, gpus=2, model_parameters=None, volume_paths=("/output",)):
    return choose_sizes(config, gpus=gpus, model_parameters=model_parameters, volume_paths=volume_paths)


def test_sizes_of_an_unknown_model_are_the_seeds_and_say_so():
    sizes = choose({**BASE, "model_name_or_path": "/models/granite"})
    assert sizes.figures == {"cpu": "5/10", "memory": "80Gi/200Gi", "ephemeral-storage": "1600Gi/2Ti"}
    assert "the size of '/models/granite' is not known here" in sizes.reasons["memory"]


def test_sizes_of_a_config_that_is_not_known_are_the_seeds():
    assert choose({}).figures["ephemeral-storage"] == "1600Gi/2Ti"


def test_sizes_follow_the_size_in_the_models_name():
    assert "the name '/llama/13B'" in choose().reasons["memory"]


def test_sizes_follow_model_parameters_where_nothing_else_tells():
    sizes = choose({**BASE, "model_name_or_path": "/m"}, model_parameters=1e8)
    assert "model_parameters" in sizes.reasons["memory"]


@pytest.mark.parametrize(("volume_paths", "expected"), [(("/output",), "6Gi/12Gi"), ((), "370Gi/740Gi")])
def test_ephemeral_storage_holds_output_dir_where_it_is_on_no_volume(volume_paths, expected):
    assert choose(volume_paths=volume_paths).figures["ephemeral-storage"] == expected


def test_ephemeral_storage_is_not_misled_by_a_similar_path():
    assert choose(volume_paths=["/out"]).figures["ephemeral-storage"] == "370Gi/740Gi"


def test_memory_on_one_gpu_holds_the_weights_on_their_way():
    request = choose(gpus=1).figures["memory"].partition("Gi")[0]
    assert int(request) >= 13e9 * 2 / 2**30


def test_reason_of_the_memory_adds_up_to_the_figure():
    reason = choose(gpus=1).reasons["memory"]
    assert "weights on their way to the GPU 24.2 GiB, rows while they are prepared 2.0 GiB" in reason
    assert reason.endswith("and half as much again")
