"""Tasks of the lm-evaluation-harness on the shipped base; without the extra, the message says what to install."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from qlora_ray import embedded
from qlora_ray.errors import ConfigError, DataError
from qlora_ray.evaluation.lm_eval.tasks import TaskRequest, check_data, check_installed, find_tasks, run_tasks

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "lm_eval_task.yaml"
NUM_ROWS = 4

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs the extra lm-eval (pip install 'qlora_ray[lm-eval]')"
)


@pytest.fixture(scope="module")
def base() -> Any:
    from qlora_ray.config.schema import Model
    from qlora_ray.modeling.loading import load_base
    from qlora_ray.modeling.quantization import QuantizationSpec

    plain = QuantizationSpec("none", 32, "torch", block_size=None, double_quantization=False, compute_dtype="fp32")
    return load_base(Model(name="embedded"), quantization=plain, device="cpu")


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task over the shipped test rows, with data paths that hold from any folder."""
    pytest.importorskip("datasets").config.HF_DATASETS_CACHE = tmp_path / "cache"
    monkeypatch.chdir(ROOT)
    text = EXAMPLE.read_text(encoding="utf-8").replace("shipped_sql", "shipped_copy")
    path = tmp_path / "copy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "qlora_ray\[lm-eval\]"'):
        check_installed()


def test_the_example_task_names_files_that_are_there() -> None:
    example = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    for name in example["dataset_kwargs"]["data_files"].values():
        row = json.loads((ROOT / name).read_text(encoding="utf-8").split("\n")[0])
        assert {"question", "sql"} <= row.keys()


@needs_harness
def test_the_harness_gets_the_answers_that_our_own_generation_gets(base: Any, task: Path, tmp_path: Path) -> None:
    from qlora_ray.scoring.generation import generate_answers

    lines = (embedded.assets_path() / "test.jsonl").read_text(encoding="utf-8").splitlines()[:NUM_ROWS]
    questions = [json.loads(line)["question"] for line in lines]
    prompts = [
        base.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in questions
    ]
    answers = generate_answers(
        base.model, base.tokenizer, prompts, max_new_tokens=128, batch_size=NUM_ROWS, precision="fp32"
    ).texts
    # Each second reference is what our own generation answered, so that the harness must find just these right.
    expected = [float(row % 2) for row in range(NUM_ROWS)]
    references = [answer if right else f"not {answer}" for answer, right in zip(answers, expected, strict=True)]
    pairs = zip(questions, references, strict=True)
    data = tmp_path / "answered.jsonl"
    data.write_text("".join(json.dumps({"question": question, "sql": sql}) + "\n" for question, sql in pairs))
    task.write_text(task.read_text(encoding="utf-8").replace("qlora_ray/embedded/assets/test.jsonl", str(data)))

    request = TaskRequest(tasks=[str(task)], batch_size=NUM_ROWS, chat_template=True)
    found = run_tasks(base.model, base.tokenizer, request=request, precision="fp32")["shipped_copy"]
    assert list(found.rows["exact_match"].values()) == expected
    assert found.metrics["exact_match"].value == 0.5
    assert (found.num_samples, found.num_fewshot, found.version) == (NUM_ROWS, 0, "1")
    assert base.tokenizer.padding_side == "right"


@needs_harness
@pytest.mark.parametrize(("fixed", "ran"), [("", 2), ("num_fewshot: 0\n", 0)])
def test_examples_are_as_many_as_asked_for_unless_the_task_fixes_none(
    base: Any, task: Path, fixed: str, ran: int
) -> None:
    text = task.read_text(encoding="utf-8").replace("max_gen_toks: 128", "max_gen_toks: 2")
    task.write_text(text + fixed, encoding="utf-8")
    request = TaskRequest(tasks=[str(task)], num_fewshot=2, limit=1)
    check_data(request)
    found = run_tasks(base.model, base.tokenizer, request=request, precision="fp32")["shipped_copy"]
    assert (found.num_fewshot, found.num_samples) == (ran, 1)


@needs_harness
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_batch_that_does_not_fit_is_halved_to_one_row_which_must(
    base: Any, task: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    import lm_eval.evaluator

    sizes: list[int] = []
    fitting = 1

    def run(*, model: Any, **_others: Any) -> dict[str, Any]:
        sizes.append(model.batch_size)
        if model.batch_size > fitting:
            raise error
        return {"results": {"t": {"acc,none": 0.5}}}

    monkeypatch.setattr(lm_eval.evaluator, "simple_evaluate", run)
    request = TaskRequest(tasks=[str(task)], batch_size=5)
    assert run_tasks(base.model, base.tokenizer, request=request, precision="fp32")["t"].metrics["acc"].value == 0.5
    fitting = 0
    with pytest.raises(type(error)):
        run_tasks(base.model, base.tokenizer, request=request, precision="fp32")
    assert sizes == [5, 2, 1] * 2


@needs_harness
@pytest.mark.parametrize("other", ["a.yaml", "below/a.yaml", "../other/a.yaml"])
def test_a_file_that_the_harness_would_not_run_is_refused(task: Path, other: str) -> None:
    mine = task.parent / "mine" / "sums.yaml"
    another = mine.parent / other
    for path in (mine, another):
        path.parent.mkdir(exist_ok=True)
        path.write_text(task.read_text(encoding="utf-8"), encoding="utf-8")
    tasks = [str(mine), str(another)] if ".." in other else [str(mine)]
    with pytest.raises(ConfigError, match=r"shipped_copy of .*mine/sums\.yaml must have a name of its") as caught:
        find_tasks(TaskRequest(tasks=tasks))
    assert str(another) in str(caught.value)
    another.write_text(task.read_text(encoding="utf-8").replace("shipped_copy", "another"), encoding="utf-8")
    _, names = find_tasks(TaskRequest(tasks=[str(mine), str(another)]))
    assert names == ["shipped_copy", "another"]


@needs_harness
def test_an_unknown_task_is_refused_with_near_names() -> None:
    with pytest.raises(ConfigError, match=r"got 'hellaswagg'\. Did you mean hellaswag "):
        find_tasks(TaskRequest(tasks=["hellaswagg"]))


@needs_harness
@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("task.yaml", None, "cannot be read: No such file"),
        ("task.yaml", "dataset_path: json\n", "must have a line `task: name`, got none"),
        ("task.yaml", "task: mine\ninclude: gone.yaml\n", r"gone\.yaml, which task\.yaml includes, cannot be read"),
        ("task.yml", "task: mine\n", r"must end in \.yaml for the harness, got .*task\.yml"),
    ],
)
def test_a_yaml_that_is_no_task_is_refused(tmp_path: Path, name: str, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        find_tasks(TaskRequest(tasks=[str(tmp_path / name)]))


@needs_harness
@pytest.mark.parametrize("is_run", [False, True])
def test_a_task_without_its_data_is_one_message(base: Any, task: Path, is_run: bool) -> None:
    task.write_text(task.read_text(encoding="utf-8").replace("assets/test.jsonl", "assets/nothing.jsonl"))
    request = TaskRequest(tasks=[str(task)])
    with pytest.raises(DataError, match=r"shipped_copy cannot be run, got FileNotFoundError: "):
        if is_run:
            run_tasks(base.model, base.tokenizer, request=request, precision="fp32")
        check_data(request)
