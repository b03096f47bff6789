"""What a volume does not offer, and how a call that failed is said."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from airflow_provider_sft.contract.exit_codes import ExitCode
from tests.trainer.test_checkpoints import publish, store  # noqa: F401  # a fixture
from trainer import files
from trainer.checkpoints import find_flaw
from trainer.failures import classify_in_run


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(files, "_limits", {})


def refuse(monkeypatch, number: int, *, directories: bool) -> None:
    """`os` is the seam: the calls fail as a kernel lets them fail, without a file's name."""
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == directories:
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_volume_that_cannot_flush_directories_is_used_with_one_notice(store, monkeypatch, number):  # noqa: F811
    refuse(monkeypatch, number, directories=True)
    publish(store, 4, 8)
    assert find_flaw(store.output_dir / "checkpoint-8") is None
    assert len(files.volume_limits()) == 1
    assert "cannot flush directories to disk" in files.volume_limits()[0]


def test_volume_that_refuses_chmod_is_used_with_one_notice(store, monkeypatch):  # noqa: F811
    def chmod(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", chmod)
    publish(store, 4, 8)
    assert find_flaw(store.output_dir / "checkpoint-8") is None
    assert ["permissions" in sentence for sentence in files.volume_limits()] == [True]


@pytest.mark.parametrize("directories", [True, False])
@pytest.mark.parametrize(("number", "code"), [(errno.EIO, 200), (errno.ENOSPC, 201), (errno.EDQUOT, 201)])
def test_flush_that_fails_names_the_file_and_the_key(store, monkeypatch, number, code, directories):  # noqa: F811
    refuse(monkeypatch, number, directories=directories)
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        publish(store, 4)
    failure = classify_in_run(raised.value, {"output_dir": str(store.output_dir)})
    assert failure.exit_code == ExitCode(code)
    assert f"in output_dir {str(store.output_dir)!r})" in failure.reason
    assert "checkpoint-4" in failure.reason
