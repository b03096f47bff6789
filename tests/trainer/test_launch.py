"""The launch plan: how many processes, which flags, and the environment that accelerate itself would make."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml

from airflow_provider_sft.contract.errors import ConfigError, NotFoundError
from trainer.launch import (
    DEFAULT_FSDP_FILE,
    Launch,
    plan_launch,
    single_process_env,
    to_flags,
)


def plan(tmp_path: Path, args: dict | None = None, *, gpus: int = 0, **environ: str) -> Launch:
    return plan_launch(args or {}, environ, gpus=gpus, scratch_dir=tmp_path)


def flags_of(launch: Launch) -> argparse.Namespace:
    """The command line as accelerate's own parser reads it."""
    from accelerate.commands.launch import launch_command_parser

    assert launch.argv[1:4] == ["-P", "-m", "accelerate.commands.launch"]
    return launch_command_parser().parse_args(launch.argv[4:])


def test_one_process_is_started_without_accelerates_launcher(tmp_path):
    launch = plan(tmp_path, gpus=1)
    assert launch.argv[1:] == ["-P", "-m", "trainer.train"]
    assert (launch.world_size, launch.distributed) == (1, "none")


def test_two_gpus_take_the_default_fsdp_file(tmp_path):
    flags = flags_of(plan(tmp_path, {"main_process_port": 1234}, gpus=2))
    assert flags.config_file == str(DEFAULT_FSDP_FILE)
    assert (flags.num_processes, flags.main_process_port, flags.module) == (2, 1234, True)
    assert flags.training_script == "trainer.train"


def test_fsdp_defaults_file_path_replaces_the_default(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}\n")
    launch = plan(tmp_path, gpus=2, FSDP_DEFAULTS_FILE_PATH=str(own))
    assert flags_of(launch).config_file == str(own)
    assert launch.distributed == "fsdp1"


def test_default_fsdp_file_is_one_that_accelerate_loads():
    from accelerate.commands.config import load_config_from_file

    config = load_config_from_file(str(DEFAULT_FSDP_FILE))
    assert config.distributed_type == "FSDP"
    assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"


def test_use_fsdp_true_takes_the_default_fsdp_file_too(tmp_path):
    flags = flags_of(plan(tmp_path, {"use_fsdp": True, "use_deepspeed": False}, gpus=2))
    assert (flags.config_file, flags.use_fsdp) == (str(DEFAULT_FSDP_FILE), True)


def launched(launch: Launch) -> argparse.Namespace:
    """What accelerate's launcher makes of command line and config file together."""
    from accelerate.commands.launch import _validate_launch_command

    return _validate_launch_command(flags_of(launch))[0]


def test_explicit_flags_win_over_the_default_fsdp_file(tmp_path):
    args = {
        "fsdp_offload_params": "true",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "mixed_precision": "bf16",
        "fsdp_version": 1,
        "main_process_port": 1234,
    }
    flags = launched(plan(tmp_path, args, gpus=2))
    assert {name: str(getattr(flags, name)) for name in args} == {
        name: str(value) for name, value in args.items()
    }
    # What is not said comes from the file.
    assert (flags.fsdp_auto_wrap_policy, flags.fsdp_cpu_ram_efficient_loading) == (
        "TRANSFORMER_BASED_WRAP",
        True,
    )
    assert flags.use_fsdp is True


def test_explicit_flags_win_over_the_users_config_file(tmp_path):
    own = tmp_path / "own.yaml"
    fsdp = {"fsdp_version": 2, "fsdp_offload_params": True, "fsdp_state_dict_type": "FULL_STATE_DICT"}
    own.write_text(
        yaml.safe_dump(
            {
                "compute_environment": "LOCAL_MACHINE",
                "distributed_type": "FSDP",
                "mixed_precision": "bf16",
                "num_processes": 8,
                "use_cpu": False,
                "debug": False,
                "fsdp_config": fsdp,
            }
        )
    )
    launch = plan(tmp_path, {"config_file": str(own), "fsdp_offload_params": "false"}, gpus=2)
    flags = launched(launch)
    assert (flags.num_processes, flags.fsdp_offload_params, flags.mixed_precision) == (2, "false", "bf16")
    assert launch.distributed == "fsdp2"


@pytest.mark.parametrize(
    ("strategy", "reshards"), [("FULL_SHARD", "true"), ("SHARD_GRAD_OP", "false"), (2, "false")]
)
def test_fsdp1s_sharding_strategy_is_said_in_fsdp2s_words(tmp_path, strategy, reshards):
    launch = plan(tmp_path, {"fsdp_sharding_strategy": strategy, "fsdp_use_orig_params": "true"}, gpus=2)
    assert (launched(launch).fsdp_reshard_after_forward, launch.distributed) == (reshards, "fsdp2")
    assert launch.notices == []


def test_strategy_that_fsdp2_has_not_means_fsdp1_and_the_log_says_so(tmp_path):
    launch = plan(tmp_path, {"fsdp_sharding_strategy": "HYBRID_SHARD"}, gpus=2)
    flags = launched(launch)
    assert (flags.fsdp_version, flags.fsdp_sharding_strategy, launch.distributed) == (
        "1",
        "HYBRID_SHARD",
        "fsdp1",
    )
    assert launch.notices == [
        "accelerate_launch_args.fsdp_sharding_strategy is 'HYBRID_SHARD', which FSDP2 has not: this run uses FSDP1."
    ]


def test_strategy_that_fsdp2_has_not_is_refused_where_fsdp2_is_asked_for(tmp_path):
    with pytest.raises(
        ConfigError, match="is 4, which FSDP2 has not. Set fsdp_version to 1, or drop one of them."
    ):
        plan(tmp_path, {"fsdp_sharding_strategy": 4, "fsdp_version": 2}, gpus=2)


def test_flag_of_fsdp1_that_does_nothing_in_fsdp2_is_said(tmp_path):
    launch = plan(
        tmp_path, {"fsdp_backward_prefetch": "BACKWARD_PRE", "fsdp_forward_prefetch": "false"}, gpus=2
    )
    assert "--fsdp_backward_prefetch" not in launch.argv
    assert launch.notices == [
        "accelerate_launch_args.fsdp_backward_prefetch has no effect in FSDP2, and changes no number."
    ]


@pytest.mark.parametrize("flag", ["use_deepspeed", "multi_gpu"])
def test_another_way_to_distribute_takes_no_fsdp_file(tmp_path, flag):
    assert flags_of(plan(tmp_path, {flag: True}, gpus=2)).config_file is None


def test_use_fsdp_false_means_plain_data_parallel(tmp_path):
    launch = plan(tmp_path, {"use_fsdp": False}, gpus=2)
    flags = flags_of(launch)
    assert (flags.config_file, flags.use_fsdp, flags.multi_gpu) == (None, False, True)
    assert launch.distributed == "ddp"


def test_processes_without_a_gpu_run_ddp_and_the_log_says_so(tmp_path):
    launch = plan(tmp_path, {"num_processes": 2, "cpu": True}, SET_NUM_PROCESSES_TO_NUM_GPUS="False")
    flags = flags_of(launch)
    assert (flags.multi_gpu, flags.cpu, flags.num_processes) == (True, False, 2)
    assert launch.env["ACCELERATE_USE_CPU"] == "True"
    assert launch.distributed == "ddp"
    assert launch.notices == [
        "No GPU is visible: the 2 processes run data-parallel (DDP) on CPU; FSDP applies to GPUs only."
    ]


@pytest.mark.parametrize("flag", [{"use_fsdp": True}, {"fsdp_offload_params": "true"}])
def test_fsdp_without_a_gpu_is_refused(tmp_path, flag):
    with pytest.raises(ConfigError, match="no GPU is visible, and FSDP does nothing on CPU"):
        plan(tmp_path, {**flag, "num_processes": 2})


def test_num_processes_that_disagrees_with_the_gpus_is_refused(tmp_path):
    with pytest.raises(ConfigError) as error:
        plan(tmp_path, {"num_processes": 4}, gpus=2, CUDA_VISIBLE_DEVICES="0,1")
    assert str(error.value) == (
        "accelerate_launch_args.num_processes is 4 but the pod sees 2 GPUs (CUDA_VISIBLE_DEVICES='0,1'). "
        "Request 4 GPUs, or drop num_processes to use every visible GPU."
    )


def test_the_users_num_processes_counts_when_the_switch_is_off(tmp_path):
    launch = plan(tmp_path, {"num_processes": 3}, gpus=2, SET_NUM_PROCESSES_TO_NUM_GPUS="false")
    assert launch.world_size == 3


@pytest.mark.parametrize("value", ["0", "no", "OFF", "False"])
def test_usual_spellings_of_false_are_taken(tmp_path, value):
    assert plan(tmp_path, gpus=2, SET_NUM_PROCESSES_TO_NUM_GPUS=value).world_size == 1


def test_an_unclear_switch_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match="SET_NUM_PROCESSES_TO_NUM_GPUS is 'maybe'. Set it to 'true' or 'false'."
    ):
        plan(tmp_path, gpus=2, SET_NUM_PROCESSES_TO_NUM_GPUS="maybe")


@pytest.mark.parametrize("value", ["3", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", ""])
def test_cuda_visible_devices_is_never_touched(tmp_path, value):
    assert "CUDA_VISIBLE_DEVICES" not in plan(tmp_path, gpus=1, CUDA_VISIBLE_DEVICES=value).env


def test_pet_variables_make_one_of_two_nodes(tmp_path):
    pet = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "8", "PET_MASTER_ADDR": "node-0"}
    launch = plan(tmp_path, gpus=8, **pet)
    flags = flags_of(launch)
    assert (flags.num_processes, flags.num_machines, flags.machine_rank) == (16, 2, 1)
    assert (flags.main_process_ip, flags.main_process_port) == ("node-0", 29500)
    assert (flags.rdzv_backend, flags.same_network) == ("static", True)


@pytest.mark.parametrize("value", ["auto", "gpu", "cpu", ""])
def test_processes_per_node_that_an_engine_leaves_open_are_the_gpus(tmp_path, value):
    assert plan(tmp_path, gpus=4, PET_NNODES="1", PET_NPROC_PER_NODE=value).world_size == 4


def test_range_of_nodes_means_the_most_of_them(tmp_path):
    pet = {"PET_NNODES": "1:3", "PET_NODE_RANK": "2", "PET_MASTER_ADDR": "node-0"}
    assert plan(tmp_path, gpus=2, **pet).world_size == 6


def test_variable_of_an_engine_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="PET_NPROC_PER_NODE is 'two'. It must be a whole number."):
        plan(tmp_path, gpus=2, PET_NPROC_PER_NODE="two")


def test_pytorchjobs_variables_serve_where_pet_is_absent(tmp_path):
    environ = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "sft-master-0", "MASTER_PORT": "23456"}
    launch = plan(tmp_path, gpus=4, **environ)
    assert (launch.world_size, launch.nodes.rank, launch.nodes.master_port) == (8, 1, 23456)


def test_two_nodes_without_a_master_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="PET_NNODES is 2 but PET_MASTER_ADDR is not set"):
        plan(tmp_path, gpus=1, PET_NNODES="2")


def test_a_missing_config_file_is_not_found(tmp_path):
    with pytest.raises(NotFoundError, match="config_file '/nowhere.yaml' does not exist"):
        plan(tmp_path, {"config_file": "/nowhere.yaml"})


@pytest.mark.parametrize(
    ("text", "sentence"), [("a: [", "is not YAML: "), ("- a\n", "holds no mapping of keys to values.")]
)
def test_a_config_file_that_is_no_mapping_is_refused(tmp_path, text, sentence):
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(ConfigError, match=f"config_file '{own}' {sentence}"):
        plan(tmp_path, {"config_file": str(own)})


def test_false_over_a_config_files_true_turns_it_off(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("distributed_type: MULTI_GPU\ndebug: true\n")
    flags = flags_of(plan(tmp_path, {"config_file": str(own), "debug": False}, gpus=2))
    assert yaml.safe_load(Path(flags.config_file).read_text())["debug"] is False


def test_flags_spell_switches_lists_and_values():
    args = {"debug": True, "quiet": False, "vm": ["a", "b"], "main_process_port": 1234, "gpu_ids": None}
    assert to_flags(args) == ["--debug", "--vm", "a", "--vm", "b", "--main_process_port", "1234"]


FILE = {
    "mixed_precision": "bf16",
    "use_cpu": True,
    "debug": True,
    "dynamo_config": {"dynamo_backend": "INDUCTOR"},
}


@pytest.mark.parametrize(
    ("args", "file"),
    [
        ({}, {}),
        ({"mixed_precision": "bf16", "dynamo_backend": "eager", "dynamo_use_dynamic": True}, {}),
        ({"cpu": True, "num_cpu_threads_per_process": 3, "debug": True}, {}),
        ({"gpu_ids": "1"}, {}),
        ({}, FILE),
        ({"mixed_precision": "fp16", "dynamo_mode": "max-autotune"}, FILE),
    ],
)
def test_environment_of_one_process_is_what_accelerates_launcher_makes(tmp_path, monkeypatch, args, file):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    if file:
        full = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "num_processes": 1, **file}
        (tmp_path / "file.yaml").write_text(yaml.safe_dump(full))
        args = {**args, "config_file": str(tmp_path / "file.yaml")}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    parsed = launch_command_parser().parse_args([*to_flags(args), "--num_processes", "1", "-m", "x"])
    _, theirs = prepare_simple_launcher_cmd_env(_validate_launch_command(parsed)[0])
    ours = single_process_env(args, file, {"OMP_NUM_THREADS": "1"})
    names = {name for name in theirs if name.startswith(("ACCELERATE_", "KMP_", "OMP_"))} | ours.keys()
    assert {name: ours.get(name) for name in names} == {name: theirs.get(name) for name in names}
