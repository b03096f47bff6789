"""From what a library raised to what a person should read, and the exit code that goes with it."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.errors import (
    AccessDeniedError,
    ConfigError,
    InternalError,
    LostRankError,
    MemoryExhaustedError,
    NotFoundError,
    SFTError,
    StorageFullError,
    TransientError,
)
from airflow_provider_sft.contract.paths import named_paths
from airflow_provider_sft.contract.secrets import mask_secrets

_LOST_PEER = re.compile(
    r"connection (closed|reset) by peer|\[?gloo|nccl|broken pipe|timed out waiting|rendezvous|socket timeout",
    re.IGNORECASE,
)
_OUT_OF_MEMORY = re.compile(
    r"out of memory|cannot allocate memory|not enough memory|std::bad_alloc|can't start new thread"
    r"|failed to map segment|unable to mmap",
    re.IGNORECASE,
)
_NO_SPACE = re.compile(r"no space left|quota exceeded|os error (28|122)\b", re.IGNORECASE)
# torch.save loses the reason; it is a full volume far more often than anything else.
_TORCH_CANNOT_WRITE = re.compile(r"PytorchStreamWriter failed|inline_container.*unexpected pos")
_HUB_DENIED = ("GatedRepoError", "DisabledRepoError")
_HUB_MISSING = (
    "RepositoryNotFoundError",
    "RevisionNotFoundError",
    "EntryNotFoundError",
    "RemoteEntryNotFoundError",
)
_HUB_OFFLINE = (
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "ConnectError",
    "ConnectTimeout",
    "ReadTimeout",
    "HfHubHTTPError",
    "ConnectionError",
)


_NO_PLACES: Mapping[str, str] = {}
# "Using X requires the Y library", "You need to install Y", "failed to import Z from Y", a module of Y's that is not there.
_NEEDS_PACKAGE = re.compile(
    r"\brequires\b.*\blibrary|\b(pip )?install(ed)?\b|failed to import"
    r"|^No module named '(?!trainer|airflow_provider_sft)",
    re.DOTALL,
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ERRNOS: tuple[tuple[tuple[int, ...], type[SFTError], str | None], ...] = (
    ((errno.EACCES, errno.EPERM, errno.EROFS), AccessDeniedError, None),
    ((errno.ENOMEM,), MemoryExhaustedError, None),
    (
        (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
        ConfigError,
        "Move away what is in its place, or name another path.",
    ),
)
_NOT_NOW = (
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE, errno.EPIPE,
    errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EHOSTUNREACH, errno.ENETUNREACH,
)  # fmt: skip
# What a run only reads: where it is gone, no retry brings it.
_READ_KEYS = ("model_name_or_path", "tokenizer_name_or_path", "training_data_path", "validation_data_path")


def classify_in_run(error: BaseException, config: Mapping[str, Any], **places: str) -> SFTError:
    """
    :param config: of the run, for the sentence; a failed call on a file below one of its paths is said with the key
    :param places: further ones
    """
    places |= {named.key: str(Path(named.text).absolute()) for named in named_paths(config)}
    return classify(error, model=str(config.get("model_name_or_path")), places=places)


def classify(error: BaseException, *, model: str, places: Mapping[str, str] = _NO_PLACES) -> SFTError:
    """
    :param model: model_name_or_path, for the sentence
    :param places: absolute paths by key
    """
    for cause in _chain(error):
        if isinstance(cause, SFTError):
            return cause
        if (known := _from_system(cause, places)) is not None:
            return known
        for kind in (_from_packages, _from_files, _from_runtime):
            if (known := kind(cause)) is not None:
                return known
        if (known := _from_hub(cause, model)) is not None:
            return known
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return InternalError(f"{type(error).__name__}{where}: {_one_line(error)}")


def _chain(error: BaseException) -> list[BaseException]:
    """The error, then what caused it."""
    chain, seen = [error], {id(error)}
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and id(cause) not in seen:
        chain.append(cause)
        seen.add(id(cause))
    return chain


def _from_system(error: BaseException, places: Mapping[str, str]) -> SFTError | None:
    if isinstance(error, MemoryError):
        return MemoryExhaustedError("The host has no memory left for this run.")
    if not isinstance(error, OSError) or error.errno is None:
        return None
    path = str(error.filename) if error.filename is not None else ""
    key = _key_of(path, places)
    of = f" ({path}, in {key} {places[key]!r})" if key else f" ({path})" if path else ""
    if error.errno in _FULL:
        advice = f"Give the volume of {key} more room." if key not in ("", "output_dir") else None
        return StorageFullError(f"No space left on the volume{of}.", advice=advice)
    kind, advice = _from_errno(error, key)
    if (
        not path and kind is TransientError and error.errno not in _NOT_NOW
    ):  # a call of our own that cannot work
        return None
    return kind(f"{error.strerror}{of}.", advice=advice)


def _from_errno(error: OSError, key: str) -> tuple[type[SFTError], str | None]:
    for errnos, kind, advice in _ERRNOS:
        if error.errno in errnos:
            return kind, advice
    if error.errno == errno.ENOENT and "temporary directory" in str(error.strerror):
        return AccessDeniedError, "Set TMPDIR to a directory that this user can write to."
    return (NotFoundError if error.errno == errno.ENOENT and key in _READ_KEYS else TransientError), None


def _key_of(path: str, places: Mapping[str, str]) -> str:
    """The key whose directory `path` is in; of nested ones the innermost."""
    real = Path(path).absolute()
    holders = [
        key for key, place in places.items() if path and f"{real}/".startswith(f"{place.rstrip('/')}/")
    ]
    return max(holders, key=lambda key: len(places[key]), default="")


def _from_packages(error: BaseException) -> SFTError | None:
    """A library that the config asks for and this image lacks: no retry brings it. A name that moved is our own fault."""
    if isinstance(error, ImportError) and _OUT_OF_MEMORY.search(str(error)):
        return MemoryExhaustedError(f"There is no memory for the libraries: {_one_line(error)}")
    if isinstance(error, PackageNotFoundError) or (
        isinstance(error, ImportError | ValueError) and _NEEDS_PACKAGE.search(str(error).partition("\n")[0])
    ):
        return ConfigError(
            f"The config asks for a package that is not installed here: {_one_line(error)} Drop the key, or use an image with it."
        )
    return None


def _from_files(error: BaseException) -> SFTError | None:
    """What safetensors and torch say of files, in classes of their own."""
    text = _one_line(error)
    if type(error).__name__ == "UnpicklingError":
        return NotFoundError(
            f"A checkpoint holds more than tensors and is not loaded: {text}",
            advice="Remove that checkpoint, or set 'resume_from_checkpoint': false to start again.",
        )
    if type(error).__name__ != "SafetensorError":
        return None
    if _NO_SPACE.search(text):
        return StorageFullError(f"No space left on the volume: {text}")
    return TransientError(text) if "os error" in text else None


def _from_hub(error: BaseException, model: str) -> SFTError | None:
    name = type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if Path(model).is_dir():
        return _from_hub_beside_a_local_model(error, status)
    if name in _HUB_DENIED or status in (401, 403):
        return AccessDeniedError(f"Access to {model!r} is denied by the Hub: {_one_line(error)}")
    if name in _HUB_MISSING:
        return NotFoundError(f"{model!r} is neither a directory nor on the Hub.")
    if name in _HUB_OFFLINE:
        return TransientError(f"{model!r} is no local directory and the Hub cannot be reached.")
    return None


def _from_hub_beside_a_local_model(error: BaseException, status: int | None) -> SFTError | None:
    """Something other than the model was asked of the Hub: to push there, a data set, a tokenizer."""
    name, text = type(error).__name__, _one_line(error)
    if name in _HUB_DENIED or status in (401, 403):
        return AccessDeniedError(f"The Hub denies what the config asks of it: {text}")
    if name in _HUB_MISSING:
        return NotFoundError(f"The Hub has not what the config asks of it: {text}")
    if name in _HUB_OFFLINE:
        return TransientError(
            f"The Hub cannot be reached, and the config asks something of it, such as push_to_hub: {text}"
        )
    return None


def _from_runtime(error: BaseException) -> SFTError | None:
    text = _one_line(error)
    if type(error).__name__ in ("OutOfMemoryError", "AcceleratorError") and _OUT_OF_MEMORY.search(text):
        return MemoryExhaustedError(f"The accelerator is out of memory: {text}")
    if not isinstance(error, RuntimeError):
        return None
    if _OUT_OF_MEMORY.search(text):
        return MemoryExhaustedError(f"Out of memory: {text}")
    if _NO_SPACE.search(text) or _TORCH_CANNOT_WRITE.search(text):
        return StorageFullError(f"No space left on the volume: {text}")
    if type(error).__name__.startswith("Dist") or _LOST_PEER.search(text):
        return LostRankError(f"The connection to another rank was lost: {text}")
    return None


def _one_line(error: BaseException) -> str:
    text = mask_secrets(" ".join(str(error).split()))  # before it is cut: half a secret has no mark
    return text if len(text) <= 400 else text[:400] + "..."  # noqa: PLR2004


def wrong_config(error: Exception) -> ConfigError:
    """Transformers and trl check their arguments with ValueError and TypeError while they are built."""
    return ConfigError(f"The training arguments contradict each other: {_one_line(error)}")
