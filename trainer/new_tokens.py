"""The two ends of a vocabulary under an adapter: rows of new tokens are trained, and a tied end stays tied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers import PreTrainedModel

from airflow_provider_sft.contract.settings import Settings
from trainer.files import read_json

Say = Callable[[str], None]


@dataclass(frozen=True)
class VocabularyEnds:
    """The embedding and the LM head, by their names in the model; one of them where the model has only one."""

    modules: dict[str, nn.Module]
    are_tied: bool

    @classmethod
    def of(cls, model: PreTrainedModel) -> VocabularyEnds:
        ends = [
            end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None
        ]
        names = {id(module): name for name, module in model.named_modules()}
        tied = len(ends) > 1 and ends[0].weight is ends[1].weight
        return cls({names[id(end)]: end for end in ends}, tied)

    def adapted(self, config: LoraConfig) -> list[str]:
        """Those that target_modules or modules_to_save reaches."""
        return [name for name in self.modules if _is_adapted(name, config)]


def read_earlier_adapter(resume_from: str | None) -> Mapping[str, Any] | None:
    """adapter_config.json of the checkpoint, which this run's adapter must fit; None where there is none."""
    return read_json(Path(resume_from) / "adapter_config.json") if resume_from else None


def tie_adapters(
    config: LoraConfig,
    model: PreTrainedModel,
    settings: Settings,
    say: Say,
    *,
    earlier: Mapping[str, Any] | None = None,
) -> None:
    """Train both ends of a tied vocabulary as one where the config adapts an end, as fms-hf-tuning does.

    :param earlier: of `read_earlier_adapter`: an older release trained the ends apart
    """
    ends = VocabularyEnds.of(model)
    adapted = ends.adapted(config)
    if not ends.are_tied or not adapted:
        return
    reach = f"The adapter reaches {' and '.join(adapted)}, and this model's embedding and LM head are one matrix (tied)"
    if "ensure_weight_tying" in settings.given and not config.ensure_weight_tying:
        how = "with ensure_weight_tying false they are trained apart"
    elif earlier is not None and not earlier.get("ensure_weight_tying"):
        how = "they are trained apart, as in the checkpoint that this run resumes from"
    else:
        how = "both are trained as one (ensure_weight_tying)"
        config.ensure_weight_tying = True
        config.modules_to_tie = config.target_modules_to_tie = None  # as LoraConfig sets them for this switch
    by_lora = not all(_is_saved_whole(name, config) for name in adapted)
    merging = (
        " PEFT's merge_and_unload would add each end's LoRA to both: merge with lora_post_process_for_vllm and "
        "vllm_export 'merged'."
    )
    say(f"{reach}: {how}.{merging if by_lora else ''}")


def train_new_tokens(
    config: PeftConfig | None,
    model: PreTrainedModel,
    new_tokens: Sequence[int],
    values: Mapping[str, Any],
    say: Say,
    *,
    earlier: Mapping[str, Any] | None = None,
) -> None:
    """Put exactly the rows of `new_tokens` into `trainable_token_indices`, where the config does not train them itself."""
    if config is None or not new_tokens:
        return
    if not isinstance(config, LoraConfig):
        say(_untrained(new_tokens, "prompt tuning trains no rows"))
    elif config.trainable_token_indices is not None:
        if left := set(new_tokens) - set(_named_tokens(config.trainable_token_indices)):
            say(_untrained(sorted(left), "trainable_token_indices does not name them"))
    elif not values["train_new_tokens"]:
        say(_untrained(new_tokens, "train_new_tokens is false"))
    elif earlier is not None and not earlier.get("trainable_token_indices"):
        say(_untrained(new_tokens, "the checkpoint that this run resumes from does not hold them"))
    else:
        _train_open_ends(config, VocabularyEnds.of(model), new_tokens, say)


def _train_open_ends(config: LoraConfig, ends: VocabularyEnds, new_tokens: Sequence[int], say: Say) -> None:
    """The rows in each end that the config does not adapt itself."""
    adapted = ends.adapted(config)
    if not adapted or not ends.are_tied:
        _train_rows(config, ends, adapted, new_tokens, say)
    elif not config.ensure_weight_tying and len(adapted) < len(ends.modules):
        say(_untrained(new_tokens, f"only {adapted[0]} is adapted, and tied ends are trained apart"))


def _train_rows(
    config: LoraConfig, ends: VocabularyEnds, adapted: Sequence[str], new_tokens: Sequence[int], say: Say
) -> None:
    open_ends = {name: end for name, end in ends.modules.items() if name not in adapted}
    trained = [name for name, end in open_ends.items() if _takes_rows(end)]
    if left := [name for name in open_ends if name not in trained]:
        say(
            _untrained(
                new_tokens,
                f"{' and '.join(left)} of this model takes no single trained rows. To train it whole, add it to modules_to_save",
            )
        )
    if not trained:
        return
    # A list is of the input embedding, and PEFT has a tied LM head follow it.
    rows = list(new_tokens)
    config.trainable_token_indices = rows if ends.are_tied else dict.fromkeys(trained, rows)
    say(
        f"The rows of {_count(new_tokens)} in {' and '.join(trained)} are trained with the adapter (trainable_token_indices). "
        "Set train_new_tokens to false to leave them as they start."
    )


def _takes_rows(end: nn.Module) -> bool:
    """PEFT computes with the weight itself: a bias, or a forward other than torch's, would be lost."""
    if isinstance(end, nn.Embedding):
        return type(end).forward is nn.Embedding.forward or hasattr(end, "embed_scale")
    return (
        isinstance(end, nn.Linear)
        and getattr(end, "bias", None) is None
        and type(end).forward is nn.Linear.forward
    )


def _is_adapted(name: str, config: LoraConfig) -> bool:
    if _is_saved_whole(name, config):
        return True
    targets = config.target_modules
    return bool(targets and targets != "all-linear" and check_target_module_exists(config, name))


def _is_saved_whole(name: str, config: LoraConfig) -> bool:
    return any(name.endswith(wanted) for wanted in config.modules_to_save or [])


def _named_tokens(indices: Any) -> Iterable[int]:
    """Of `trainable_token_indices`: a list, or one for each module."""
    if isinstance(indices, Mapping):
        return [token for tokens in indices.values() for token in tokens]
    return list(indices)


def _untrained(tokens: Sequence[int], why: str) -> str:
    return f"The rows of {_count(tokens)} stay as they start and are not trained: {why}."


def _count(tokens: Sequence[int]) -> str:
    return f"{len(tokens)} new token{'' if len(tokens) == 1 else 's'}"
