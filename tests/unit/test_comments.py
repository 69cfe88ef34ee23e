"""Comments and docstrings name only files that a reader can open: of this repository, or of a library's or paper's."""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("qlora_ray", "tests", "tools", "benchmarks")
# Not those under .venv or a sweep's results, so that nothing else's files count.
FILES = [path.relative_to(ROOT) for folder in (*FOLDERS, "docs", "cluster") for path in (ROOT / folder).rglob("*.*")]
FILES += [path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), ROOT / "results" / "README.md")]
MENTION = re.compile(r"[\w./-]*\w\.(?:md|py)\b")

# Of installed packages, as their comments name them beside the version.
UPSTREAM = {
    "transformers/integrations/bitsandbytes.py": "transformers",
    "functional.py": "bitsandbytes",
    "optim/optimizer.py": "bitsandbytes",
    "quantizers/quantizer_gptq.py": "transformers",
    "quantizers/quantizer_awq.py": "transformers",
    "utils/quantization_config.py": "transformers",
    "tuners/lora/layer.py": "peft",
    "tuners/lora/gptq.py": "peft",
    "tuners/lora/awq.py": "peft",
    "kernels/chunked_logprob.py": "trl",
    "trainer/utils.py": "trl",
    "file_download.py": "huggingface_hub",
    "tasks/_index.py": "lm_eval",
    "tasks/_yaml_loader.py": "lm_eval",
    "lm_eval/tasks/hendrycks_math/utils.py": "lm_eval",
}
# Of the code beside a paper, and of servers and converters that are not installed here.
PUBLISHED = {
    "hyperparam_utils.py",
    "sft_sweep.md",
    "lib/scoring.py",
    "evaluate-v1.1.py",
    "grade_school_math/dataset.py",
    "vllm/config/lora.py",
    "vllm/lora/peft_helper.py",
    "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py",
}
# Written by our commands, or to be written by the user.
WRITTEN = {"RUN_RECORD.md", "report.md", "path/to/file.py", "FILE.py"}


def commented_text(path: Path) -> str:
    """The comments and docstrings of a Python file."""
    source = path.read_text(encoding="utf-8")
    if not MENTION.search(source):
        return ""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    with_docstrings = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, with_docstrings)]
    return "\n".join([*comments, *(ast.get_docstring(node) or "" for node in nodes)])


def is_in_repository(mention: str) -> bool:
    parts = Path(mention).parts
    return any(file.parts[-len(parts) :] == parts for file in FILES)


def test_the_files_that_comments_name_are_there():
    known = {*UPSTREAM, *PUBLISHED, *WRITTEN}
    sources = [ROOT / file for file in FILES if file.suffix == ".py"]
    assert len(sources) > 100
    missing = [
        f"{source.relative_to(ROOT)}: {mention}"
        for source in sources
        for mention in MENTION.findall(commented_text(source))
        if mention not in known and not is_in_repository(mention)
    ]
    assert missing == []


@pytest.mark.parametrize("mention", UPSTREAM)
def test_the_files_of_libraries_that_comments_name_are_there(mention):
    spec = importlib.util.find_spec(UPSTREAM[mention])
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{UPSTREAM[mention]} is not installed")
    assert (Path(spec.submodule_search_locations[0]) / mention.removeprefix(f"{UPSTREAM[mention]}/")).is_file()
