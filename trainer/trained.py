"""That the training is over, and what it left: an attempt that ended in the export or the report goes on from there.

Written by rank 0 once the final model is on disk, and gone with the completion mark. Stdlib only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from trainer.files import describe_file, find_damage, write_json
from trainer.records import Shape, is_number, read_record

TRAINED_FILE = ".sft.trained.json"
TRAINED_SHAPE: Shape = {"model_dir": str, "files": dict, "facts": dict, "notices": list, "exported": dict}


@dataclass(frozen=True)
class Trained:
    """
    :param model_dir: where the final model lies
    :param files: its files, as `sync_and_describe` gives them
    :param facts: fields of the result
    :param notices: sentences of the attempt that trained, for the result
    :param exported: files that the export may have put in their place, or beside them
    """

    model_dir: str
    files: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    notices: list[str]
    exported: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, output_dir: Path) -> None:
        write_json(output_dir / TRAINED_FILE, asdict(self))

    @classmethod
    def read(cls, output_dir: Path, say: Callable[[str], None]) -> Self | None:
        """What an earlier attempt of this run trained; `say` hears why that cannot be used any more."""
        trained = cls.load(output_dir)
        return trained if trained and trained.is_whole(say) else None

    def is_whole(self, say: Callable[[str], None]) -> bool:
        """`say` hears what is missing or damaged."""
        directory, damage = Path(self.model_dir), None
        if not is_number(self.facts.get("steps")):
            say(f"{TRAINED_FILE} does not say how many steps were trained, and is not used.")
            return False
        for files in (self.files, self.files | self.exported):
            damage = next(find_damage(directory, files), None)
            if damage is None:
                return True
        say(f"The trained model in {directory} cannot be used: {damage}.")
        return False

    @classmethod
    def expect(cls, output_dir: Path, stage: Path) -> None:
        """The export is about to put the files of `stage` in the place of what was trained."""
        if trained := cls.load(output_dir):
            staged = {path.name: describe_file(path) for path in sorted(stage.iterdir())}
            replace(trained, exported=staged).write(output_dir)

    @staticmethod
    def forget(output_dir: Path) -> None:
        (output_dir / TRAINED_FILE).unlink(missing_ok=True)

    @classmethod
    def load(cls, output_dir: Path) -> Self | None:
        return cls.parse(read_record(output_dir / TRAINED_FILE, TRAINED_SHAPE))

    @classmethod
    def parse(cls, record: object) -> Self | None:
        is_ours = isinstance(record, dict) and record.keys() == {each.name for each in fields(cls)}
        return cls(**record) if is_ours else None  # type: ignore[arg-type]
