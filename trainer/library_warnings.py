"""What transformers and PEFT warn of while a model is built, which the ranks' log leaves out: for people, as notices."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

_LIBRARIES = ("transformers", "peft")
_MAX_CHARS = 300
# What has no consequence here, or is said in words of ours.
_NOISE = re.compile(
    r"tie_word_embeddings=True"  # trainer/new_tokens.py
    r"|Token indices sequence length|generation flags|generation config|use_cache|clean_up_tokenization"
    r"|fan_in_fan_out is set to|pattern keys did not match .*gate_up_proj'\]"  # PEFT's own doing
    r"|already found a `?peft_config|fast path is not available|`?torch_dtype`? is deprecated|loss_type=",
    re.IGNORECASE,
)


class _Collector(logging.Handler):
    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(record.getMessage())


@contextlib.contextmanager
def telling_warnings(say: Callable[[str], None]) -> Iterator[None]:
    """Pass on each warning once, also when an error follows; deprecations are ours to mind and not the user's."""
    logger = logging.getLogger("transformers")
    texts: list[str] = []
    handlers, level = logger.handlers, logger.level
    logger.handlers = [_Collector(texts)]
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as recorded:
            warnings.simplefilter("ignore")
            for category in (UserWarning, RuntimeWarning):
                warnings.simplefilter("always", category)
            yield
    finally:
        logger.handlers = handlers
        logger.setLevel(level)
        said = [("transformers", text) for text in texts]
        said += [(_library_of(each.filename), str(each.message)) for each in recorded]
        for library, text in dict.fromkeys((name, " ".join(text.split())) for name, text in said):
            if library and not _NOISE.search(text):
                say(f"{library} warns: {text[:_MAX_CHARS]}")


def _library_of(filename: str) -> str:
    """Empty for another than the two whose warnings matter."""
    return next((name for name in _LIBRARIES if name in Path(filename).parts), "")
