"""A released vLLM without its dependencies: its LoRA modules are the real ones, the rest of it are stand-ins.

`install` makes `import vllm.lora…` work from the wheel's Python files alone, and says afterwards what was real.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

# Executed as released. What each release lacks of them is passed over.
REAL = (
    "vllm.config.lora",
    "vllm.lora.lora",  # LoRALayerWeights, in 0.8
    "vllm.lora.lora_model",
    "vllm.lora.lora_weights",
    "vllm.lora.model_manager",
    "vllm.lora.models",
    "vllm.lora.peft_helper",
    "vllm.lora.utils",
    "vllm.lora.layers.utils",
    "vllm.lora.layers.base",
    "vllm.lora.layers.vocab_parallel_embedding",
    "vllm.lora.layers.vocal_parallel_embedding",
    "vllm.lora.layers.logits_processor",
)


class _AnyMeta(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(name)

    def __or__(cls, other: object) -> Any:
        return cls

    def __ror__(cls, other: object) -> Any:
        return cls

    def __getitem__(cls, item: object) -> Any:
        return cls


class _Any(metaclass=_AnyMeta):
    """Takes any argument, has any attribute, decorates anything."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(name)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) else _Any()


def _stand_in(name: str) -> Any:
    return type(name, (_Any,), {})


class _StandInModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Real files for the names in REAL, stand-ins for every other `vllm` module and for `tensorizer`."""

    def __init__(self, sources: Path) -> None:
        self.sources = sources
        self.real: list[str] = []
        self.stood_in: list[str] = []

    def find_spec(self, name: str, path: object, target: object = None) -> Any:
        if name.split(".", maxsplit=1)[0] not in ("vllm", "tensorizer"):
            return None
        file = self.sources / f"{name.replace('.', '/')}.py"
        if name in REAL and file.exists():
            self.real.append(name)
            return importlib.util.spec_from_file_location(name, file)
        self.stood_in.append(name)
        return importlib.util.spec_from_loader(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        module = _StandInModule(spec.name)
        for attribute, value in _SPOKEN_FOR.get(spec.name, {}).items():
            setattr(module, attribute, value)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _config_decorator(cls: Any = None, **options: Any) -> Any:
    from pydantic.dataclasses import dataclass

    if cls is None or not isinstance(cls, type):
        return lambda decorated: dataclass(decorated, config=options.get("config"))
    return cls  # 0.11 applies pydantic's own decorator below ours


class _Platform(_Any):
    @staticmethod
    def get_lora_vocab_padding_size() -> int:
        return 256

    @staticmethod
    def can_update_inplace() -> bool:
        return True

    @staticmethod
    def is_cuda_alike() -> bool:
        return False


class _Logger:
    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


_SPOKEN_FOR: dict[str, dict[str, Any]] = {
    "vllm.config.utils": {"config": _config_decorator},
    "vllm.logger": {"init_logger": lambda name: _Logger()},
    "vllm.platforms": {"current_platform": _Platform()},
    "vllm": {"envs": types.SimpleNamespace(VLLM_LORA_ENABLE_DUAL_STREAM=False)},
    "vllm.utils": {"is_pin_memory_available": lambda: False},
    "vllm.utils.platform_utils": {"is_pin_memory_available": lambda: False},
    "vllm.utils.torch_utils": {"PIN_MEMORY": False},
    "vllm.distributed": {
        "get_tensor_model_parallel_rank": lambda: 0,
        "get_tensor_model_parallel_world_size": lambda: 1,
    },
}


def install(sources: Path) -> _Finder:
    """:param sources: holds `vllm/`, the Python files of one wheel"""
    finder = _Finder(sources)
    sys.meta_path.insert(0, finder)
    return finder
