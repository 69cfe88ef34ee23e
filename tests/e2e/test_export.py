"""The export command as a user runs it: a real adapter, merged, zipped, loaded by its own card, pushed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from qlora_ray.config import load_config
from qlora_ray.config.schema import Lora, Model, Quantization
from qlora_ray.export import main, make_parser
from qlora_ray.exporting import bundle as bundle_module
from qlora_ray.exporting.merge import run as merge_module
from qlora_ray.modeling.adapters import attach_adapter, detach_adapter, save_adapter
from qlora_ray.modeling.loading import load_base
from qlora_ray.modeling.quantization import specify_quantization
from tests.exporting_fixtures import write_sweep
from tests.fake_hub import FakeRepository, running_hub

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep whose winner is an adapter of the embedded base with weights that do something."""
    root = write_sweep(tmp_path_factory.mktemp("results") / "s")
    base = load_base(Model(), quantization=specify_quantization(Quantization(), compute_dtype="fp32"), device="cpu")
    model = attach_adapter(base, Lora(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]), seed=7)
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    for place in (root / "best" / "adapter", root / "trials" / "0001" / "adapter"):
        shutil.rmtree(place)
        save_adapter(model, place)
    base.tokenizer.save_pretrained(str(root / "best" / "adapter"))
    detach_adapter(base)
    return root


@pytest.fixture(scope="module")
def exported(sweep, tmp_path_factory):
    """The winner's bundle with a merged model, zipped."""
    to = tmp_path_factory.mktemp("out") / "bundle"
    assert main([str(sweep), "--to", str(to), "--zip"]) == 0
    return to


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A folder whose bundle.json is not whole."""
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "bundle.json").write_text('{"bundle_version": 1, "name": "b", "files": [{"path": "a"}]}')
    return folder


def snippets(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.+?)```", (folder / "README.md").read_text(), re.DOTALL)


def test_a_bundle_has_all_that_its_inventory_says(exported):
    inventory = json.loads((exported / "bundle.json").read_text())
    names = {file["path"] for file in inventory["files"]}
    assert {"merged/model.safetensors", "merged/merge_report.json", "adapter/adapter_model.safetensors"} <= names
    report = json.loads((exported / "merged" / "merge_report.json").read_text())
    assert inventory["merge"] == report["rule"]
    assert inventory["name"].endswith(f"_SFT_LoRa4_QLORA_w4_head{report['head_dtype']}")
    with zipfile.ZipFile(exported.with_suffix(".zip")) as archive:
        assert {name.partition("/")[2] for name in archive.namelist()} == names | {"bundle.json"}


def test_the_cards_own_code_loads_both_models_and_they_agree(exported, monkeypatch):
    monkeypatch.chdir(exported)
    merged_code, adapter_code, asking_code = snippets(exported)
    found = []
    for code in (merged_code, adapter_code):
        names: dict = {}
        exec(code, names)
        model, tokenizer = names["model"].eval(), names["tokenizer"]
        tokens = tokenizer("How many customers are there?", return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            found.append(model(tokens).logits.float().log_softmax(-1))
            exec(asking_code, names)
        assert names["answer"].shape[1] > names["inputs"]["input_ids"].shape[1]
    merged, trained = found
    # The bound is that of the merge's own report: its mean KL is over other rows.
    kl = (trained.exp() * (trained - merged)).sum(-1).mean()
    assert 0 <= kl < 0.05
    assert not torch.equal(merged, trained)


def test_the_configs_in_the_bundle_are_taken_by_the_sweep_command(exported):
    for name in ("sweep.yaml", "trial.yaml"):
        command = [sys.executable, "-m", "qlora_ray.sweep", "--config", name, "--print-config"]
        result = subprocess.run(command, cwd=exported, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert load_config(exported / name).model.name == "embedded"


def test_what_was_written_is_told_with_the_next_command(sweep, tmp_path, capfd):
    to = tmp_path / "b"
    assert main([str(sweep), "--to", str(to), "--merge", "none", "--trial", "1"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "trial 0001 of s, the winner" in out
    assert f"bundle  {to} (" in out and "adapter/" in out and "merged/" not in out
    told = re.search(r"push it: +python -m qlora_ray\.export (.+)", out)
    arguments = make_parser().parse_args(told[1].split())
    assert arguments.source == to and arguments.push.startswith("USER/embedded-classicmodels_SFT_LoRa4_QLORA_w4_")


def test_the_figures_of_a_bundles_evaluation_go_on_its_card_when_it_is_exported_again(exported, sweep, capfd):
    from qlora_ray.evaluate import main as evaluate

    assert evaluate([str(exported), "--rows", "4"]) == 0
    assert "| merged |" not in (exported / "README.md").read_text()
    assert main([str(sweep), "--to", str(exported), "--zip"]) == 0
    out, _ = capfd.readouterr()
    card = (exported / "README.md").read_text()
    assert "left out" not in out
    assert "| merged | 0-shot |" in card and "- Rows: 4 of test" in card
    assert (exported / "evaluation" / "evaluation.md").is_file()


def test_a_bundle_is_pushed_as_it_is(exported, monkeypatch, capfd):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        assert main([str(exported), "--push", "ann/model"]) == 0
        repository = hub.repositories["ann/model"]
        inventory = json.loads((exported / "bundle.json").read_text())
        assert repository.private
        assert repository.files == {
            name: (exported / name).read_bytes()
            for name in [*(file["path"] for file in inventory["files"]), "bundle.json"]
        }
        out, err = capfd.readouterr()
        assert f"pushed  {hub.endpoint}/ann/model" in out and hub.token not in out + err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{sweep}"], "--to: must name the bundle's folder, got none"),
        (["{sweep}", "--to", "{sweep}/trials"], "must not be the sweep's own folder"),
        (["{sweep}", "--to", "b", "--trial", "0"], "must be a complete trial, got one that is pruned ("),
        (["{sweep}", "--to", "."], "must be a folder that can be replaced, got the folder this command runs in"),
        (["{sweep}", "--to", ""], "must be a folder that can be replaced, got the folder this command runs in"),
        (["{sweep}", "--to", "b", "--public"], "--public: says what --push makes, got no --push"),
        (["{sweep}", "--to", "b", "--merge", "none", "--dtype", "fp32"], "--dtype: is of the merged model"),
        (["{sweep}", "--to", "b", "--merge", "none", "--max-shard-size", "1GB"], "--max-shard-size: is of the merged"),
        (["{sweep}", "--to", "b", "--max-shard-size", "2GiB"], "must be a size in KB, MB, GB or TB, got '2GiB'"),
        (["{sweep}", "--to", "{sweep}/manifest.json/b"], "must be in a folder that can be written"),
        (["{sweep}", "--to", "b", "--push", ""], "--push: must be USER/REPO, got '/embedded-classicmodels_SFT_"),
        (["{sweep}", "--to", "b", "--push", "a b"], "--push: must be USER/REPO, got 'a b/embedded-classicmodels_SFT_"),
        (["{sweep}", "--to", "b", "--push", "a/b/c"], "--push: must be USER/REPO, got 'a/b/c'"),
        (["{sweep}", "--to", "b", "--push", "a"], "--push a/embedded-classicmodels_SFT_LoRa4_QLORA_w4_headfp32: needs"),
        (["{sweep}", "--to", "b", "--push", "a/b"], "got HF_HUB_OFFLINE=1"),
        (["{sweep}", "--to", "b", "--set", "model.name=/nowhere"], "got no folder /nowhere. Restore that base"),
        (["nowhere", "--to", "b"], "nowhere: must be a sweep's folder, got no such folder"),
        (["{bundle}", "--to", "b"], "a bundle takes --zip and --push and nothing else, got --to"),
        (["{bundle}", "--zip", "--head-dtype", "fp32"], "nothing else, got --head-dtype"),
        (["{bundle}", "--zip", "--max-shard-size", "1GB"], "nothing else, got --max-shard-size"),
        (["{bundle}", "--zip", "--set", "model.name=x"], "nothing else, got --set"),
        (["{bundle}"], "nothing else, got neither"),
        (["{damaged}", "--zip"], "got a bundle.json that is damaged or of another kind. Give the sweep's folder"),
        (["{sweep}", "--to", "{damaged}"], "must be a new folder or an earlier bundle, got one with bundle.json"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    sweep, exported, damaged, tmp_path, monkeypatch, capfd, arguments, message
):
    monkeypatch.chdir(tmp_path)
    before = sorted(sweep.rglob("*"))
    assert main([text.format(sweep=sweep, bundle=exported, damaged=damaged) for text in arguments]) == 2
    _, err = capfd.readouterr()
    assert message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [] and sorted(sweep.rglob("*")) == before


def test_a_bundle_is_zipped_from_inside_it(exported, monkeypatch, capfd):
    monkeypatch.chdir(exported)
    before = exported.with_suffix(".zip").read_bytes()
    assert main([".", "--zip"]) == 0
    assert exported.with_suffix(".zip").stat().st_size == len(before)
    assert f"zip     {exported.with_suffix('.zip')} (" in capfd.readouterr().out


def test_a_sweep_is_exported_from_inside_it_to_the_home_folder(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(sweep)
    assert main([".", "--to", "~/b", "--merge", "none"]) == 0
    assert json.loads((tmp_path / "b" / "bundle.json").read_text())["sweep"] == sweep.name
    assert not (sweep / "~").exists()


def test_a_sweep_in_another_users_private_folder_is_one_message(tmp_path, monkeypatch, capfd):
    stat = Path.stat

    def refuse(path, **settings):
        if tmp_path in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **settings)

    # Whoever runs the tests may be allowed everything.
    monkeypatch.setattr(Path, "stat", refuse)
    assert main([str(tmp_path / "s"), "--to", "b"]) == 2
    err = capfd.readouterr().err
    # Python before 3.14 says so when it is asked what is there; later ones say that nothing is.
    assert (
        re.match(rf"{tmp_path / 's'}: (cannot be looked into: |must be a sweep's folder)", err) and err.count("\n") == 1
    )


def test_a_terminated_export_leaves_nothing_and_says_so(sweep, tmp_path, monkeypatch, capfd):
    def terminate(*args, **settings):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(bundle_module, "take_inventory", terminate)
    before = signal.getsignal(signal.SIGTERM)
    assert main([str(sweep), "--to", str(tmp_path / "deep" / "b"), "--merge", "none"]) == 143
    assert capfd.readouterr().err == "stopped\n"
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) is before


def test_a_gpu_and_a_machine_without_room_are_one_message(sweep, tmp_path, monkeypatch, capfd):
    def run_out(*args, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    monkeypatch.setattr(merge_module, "load_base", run_out)
    assert main([str(sweep), "--to", str(tmp_path / "b")]) == 2
    assert "merging must fit the memory of this machine, got too little" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_user_alone_gets_a_repository_of_the_bundles_name_which_is_checked_before_the_merge(
    sweep, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    repo_id = "ann/embedded-classicmodels_SFT_LoRa4_QLORA_w4_headfp32"
    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        command = [str(sweep), "--to", str(tmp_path / "b"), "--push", "ann"]
        hub.repositories[repo_id] = FakeRepository(True, {"mine.txt": b"x"})
        assert main(command) == 2
        assert f"--push {repo_id}: the name must be new" in capfd.readouterr().err
        assert list(tmp_path.iterdir()) == []
        hub.repositories.clear()
        assert main([*command, "--merge", "none"]) == 0
        assert f"pushed  {hub.endpoint}/{repo_id}" in capfd.readouterr().out
        assert "bundle.json" in hub.repositories[repo_id].files


def test_where_the_base_decides_on_the_name_the_user_is_checked_before_and_the_name_after(
    sweep, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        command = [str(sweep), "--to", str(tmp_path / "b"), "--merge", "w16", "--dtype", "checkpoint"]
        assert main([*command, "--push", "bob"]) == 2
        assert "--push bob: must be a user that your token may write to" in capfd.readouterr().err
        assert list(tmp_path.iterdir()) == []
        assert main([*command, "--push", "ann"]) == 0
        # The embedded base is stored in bf16.
        assert list(hub.repositories) == ["ann/embedded-classicmodels_SFT_LoRa4_QLORA_w4_headbf16"]


def test_what_a_killed_export_left_is_gone_with_the_next(sweep, exported, tmp_path):
    # An earlier bundle is there, and a new one is half written when the process is killed.
    to = tmp_path / "b"
    shutil.copytree(exported, to)
    before = (to / "bundle.json").read_bytes()
    reading, writing = os.pipe()
    code = (
        "import os, signal, sys; from qlora_ray.exporting import bundle; from qlora_ray.export import main\n"
        f"bundle.take_evaluation = lambda *args, **settings: (os.write({writing}, b'there'), signal.pause())\n"
        "main(sys.argv[1:])"
    )
    command = [str(sweep), "--to", str(to), "--merge", "none"]
    with subprocess.Popen([sys.executable, "-c", code, *command], cwd=ROOT, pass_fds=[writing]) as process:
        os.close(writing)
        assert os.read(reading, 5) == b"there"
        (half,) = [path for path in tmp_path.iterdir() if path != to]
        assert (half / "adapter" / "adapter_config.json").is_file()
        # As long as it lives, nobody else writes there.
        assert main(command) == 2
        assert half.is_dir()
        process.kill()
    os.close(reading)
    assert (to / "bundle.json").read_bytes() == before
    assert main(command) == 0
    assert list(tmp_path.iterdir()) == [to] and not (to / "merged").exists()


def test_help_loads_no_heavy_library():
    code = (
        "import sys; from qlora_ray.export import make_parser; make_parser().format_help();"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub', 'pydantic') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
