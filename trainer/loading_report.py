"""What transformers' loading report says against a model, once what is rightly absent or left over is taken out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_SHOWN = 3
# Left over in a file, and not a loss. Transformers' own exceptions (`_keys_to_ignore_on_load_*`, tied weights) are
# taken out of its report already.
_RIGHTLY_LEFT_OVER = {
    r"(^|\.)(attn|attention|self_attention|self_attn)\.(masked_)?bias$": "causal masks that older releases saved",
    r"(^|\.)(inv_freq|position_ids|(cos|sin)_cached)$": "tables that are computed",
    r"(^|\.)(mtp|mtp_layers|nextn)(\.|$)": "heads that predict further tokens, which are not trained here",
    r"\.[kvq]_(proj\.)?(output_)?scale$|\.(input|activation)_scale$": "ranges for a quantised cache or activation",
}
# Of a multimodal checkpoint whose text part was loaded.
_OTHER_MODALITIES = re.compile(
    r"^(model\.)?(vision|visual|audio|image|video|speech|mm|multi_modal|multimodal|embed_(vision|audio))[\w]*(\.|$)"
)
# A quantised layer has them or not.
_OPTIONAL_WHEN_QUANTISED = re.compile(r"\.(g_idx|bias)$")


def describe_flaws(report: Mapping[str, Any], reports: Sequence[Any], model: Any, *, is_part: bool) -> str:
    """A clause for each kind of flaw, with how many weights and the first names; empty for a whole model.

    :param report: of `from_pretrained(output_loading_info=True)`
    :param reports: the same, as transformers was about to log it, with failed conversions
    :param is_part: the model is the text part of what config.json describes
    """
    missing = set(report["missing_keys"])
    if getattr(model, "is_quantized", False):
        missing = {name for name in missing if not _OPTIONAL_WHEN_QUANTISED.search(name)}
    broken = sorted({name for each in reports for name in each.conversion_errors})
    clauses = (
        _clause("missing", missing - set(broken)),
        _clause("left over", _left_over(report["unexpected_keys"], is_part=is_part)),
        _clause("of another shape", _shapes(report["mismatched_keys"])),
        _clause("incomplete", broken),
        _clause("unreadable", report["error_msgs"]),
    )
    return "; ".join(filter(None, clauses))


def _left_over(names: Iterable[str], *, is_part: bool) -> set[str]:
    left = {name for name in names if not any(re.search(pattern, name) for pattern in _RIGHTLY_LEFT_OVER)}
    if is_part:
        left = {name for name in left if not _OTHER_MODALITIES.search(name)}
    return left


def _shapes(mismatched: Iterable[tuple[str, Any, Any]]) -> Iterator[str]:
    for name, found, wanted in mismatched:
        yield f"{name} {list(found)} instead of {list(wanted)}"


def _clause(kind: str, names: Iterable[str]) -> str:
    shown = sorted(map(str, names))
    if not shown:
        return ""
    more = f", ... {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    verb = "is" if len(shown) == 1 else "are"
    return f"{len(shown)} {verb} {kind} ({', '.join(shown[:_SHOWN])}{more})"
