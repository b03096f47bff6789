"""`make demo`: a real small model tuned on real data by an Airflow DAG, on this machine.

fetch model and data → Airflow on SQLite → dags/data_to_tuning.py with a progress bar → a table
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from airflow_provider_sft.contract.progress import describe_duration
from tools.demo.ingredients import Ingredients

CHECKOUT = Path(__file__).parents[2]
ROOT = CHECKOUT / ".demo"
console = Console()


def main() -> int:
    began = time.monotonic()
    ingredients = Ingredients(ROOT)
    console.print("1/3 model and data (SmolLM2-135M-Instruct, ChatterBot's dialogues)")
    ingredients.fetch()
    ingredients.convert()
    console.print("2/3 Airflow's database (SQLite)")
    env = airflow_environment(ROOT / "airflow")
    run([sys.executable, "-m", "airflow", "db", "migrate"], env, ROOT / "airflow-db.log")
    work_dir = ROOT / "runs" / time.strftime("%Y%m%d-%H%M%S")
    console.print("3/3 the DAG data_to_tuning: prepare, ask, tune, ask again, compare")
    run_dag(ingredients, env, work_dir)
    tell(work_dir, time.monotonic() - began)
    return 0


def airflow_environment(home: Path) -> dict[str, str]:
    """An Airflow of its own: nothing of the user's is read or written."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {
        **kept,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(CHECKOUT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "HF_HUB_OFFLINE": "1",
    }


def run(command: list[str], env: dict[str, str], log: Path) -> None:
    with log.open("w", encoding="utf-8") as file:
        ended = subprocess.run(command, env=env, stdout=file, stderr=subprocess.STDOUT, check=False)
    if ended.returncode != 0:
        raise SystemExit(f"{' '.join(command[1:])} ended with code {ended.returncode}; its log is {log}.")


def run_dag(ingredients: Ingredients, env: dict[str, str], work_dir: Path) -> None:
    params = {
        "model": str(ingredients.model_dir),
        "corpus": str(ingredients.corpus_dir),
        "work_dir": str(work_dir),
    }
    work_dir.mkdir(parents=True)
    command = [
        sys.executable,
        "-m",
        "airflow",
        "dags",
        "test",
        "data_to_tuning",
        "--conf",
        json.dumps(params),
    ]
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(work_dir, done))
    watcher.start()
    try:
        run(command, env, work_dir / "airflow.log")
    finally:
        done.set()
        watcher.join()


def watch(work_dir: Path, done: threading.Event) -> None:
    """A live bar on a terminal, a plain line for every fifth step elsewhere; both from `progress.json`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
    )
    seen = -1
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None, loss="")
        while not done.wait(0.5):
            state = read_progress(work_dir)
            if state is None or state["step"] == seen:
                continue
            seen = state["step"]
            loss = f"loss {state['loss']:.3f}" if "loss" in state else ""
            words = f"step {seen}/{state['max_steps']}"
            bar.update(task, description=words, total=state["max_steps"], completed=seen, loss=loss)
            if not console.is_terminal and (seen % 5 == 0 or seen == state["max_steps"]):
                console.print(f"{words}  {loss}")


def read_progress(work_dir: Path) -> dict[str, float] | None:
    for path in work_dir.glob("*/adapter/progress.json"):
        state: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return state
    return None


def tell(work_dir: Path, seconds: float) -> None:
    [run_dir] = [path.parent for path in work_dir.glob("*/adapter")]
    result = json.loads((run_dir / "adapter" / "result.json").read_text(encoding="utf-8"))
    before, after = (
        json.loads((run_dir / f"{name}.json").read_text(encoding="utf-8")) for name in ("before", "after")
    )
    table = Table(show_header=False, box=None)
    table.add_row("training loss", f"{result['train_loss_first']:.3f} -> {result['train_loss_last']:.3f}")
    table.add_row("held-out rows", str(after["num_rows"]))
    table.add_row("time", f"{describe_duration(seconds)}, tuning {describe_duration(result['wall_s'])}")
    console.print(table)
    # Plain lines: a table cuts a path that is longer than the terminal is wide.
    console.print(f"adapter: {result['model_path']}", soft_wrap=True, highlight=False)
    console.print(f"report:  {run_dir / 'adapter' / 'report.html'}", soft_wrap=True, highlight=False)
    console.print(f"held-out before: {before['contains']:.2f} after: {after['contains']:.2f}")


if __name__ == "__main__":
    raise SystemExit(main())
