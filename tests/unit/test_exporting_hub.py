"""Pushing a bundle to a hub that runs on this machine: what is sent, what is refused, and what is never told."""

from __future__ import annotations

import copy
import os
import shlex
from pathlib import Path

import huggingface_hub
import pytest

from qlora_ray.errors import RunError
from qlora_ray.export import make_parser
from qlora_ray.exporting import hub as hub_module
from qlora_ray.exporting.hub import push_bundle
from qlora_ray.exporting.hub_plan import plan_push
from qlora_ray.exporting.inventory import Bundle
from qlora_ray.runs.inventory import list_files
from tests.exporting_fixtures import snapshot
from tests.fake_hub import FakeHub, FakeRepository

REPO = "ann/embedded-classicmodels_SFT_LoRa4_QLORA_w4_headbf16"
CARD = "---\nlibrary_name: peft\n---\n\n# A card\n"
pytestmark = pytest.mark.usefixtures("online")


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    contents = {
        "README.md": CARD.encode(),
        "adapter/adapter_config.json": b"{}",
        "adapter/adapter_model.safetensors": os.urandom(3000),
        "merged/model.safetensors": os.urandom(70_000),
        "bundle.json": b'{"bundle_version": 1}',
    }
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def push(hub, bundle, *, repo_id=REPO, is_public=False, tell=print):
    plan = plan_push(repo_id, is_public=is_public, tell=tell, token=hub.token, endpoint=hub.endpoint)
    return push_bundle(bundle_of(bundle), plan=plan, tell=tell)


def bundle_of(folder: Path) -> Bundle:
    return Bundle(folder, {"files": [{"path": path} for path in list_files(folder) if path != "bundle.json"]})


def test_every_file_arrives_byte_by_byte_in_a_private_repository(hub: FakeHub, bundle):
    url = push(hub, bundle)
    assert url == f"{hub.endpoint}/{REPO}"
    assert hub.repositories[REPO].files == snapshot(bundle)
    assert hub.repositories[REPO].private
    assert hub.created == [{"name": REPO.split("/")[1], "organization": "ann", "visibility": "private"}]


def test_what_was_put_beside_the_bundles_files_stays_here(hub: FakeHub, bundle):
    before = snapshot(bundle)
    written = bundle_of(bundle)
    (bundle / "results").mkdir()
    (bundle / "results" / "secret.txt").write_text("x")
    plan = plan_push(REPO, is_public=False, tell=print, token=hub.token, endpoint=hub.endpoint)
    push_bundle(written, plan=plan, tell=print)
    assert hub.repositories[REPO].files == before


def test_public_says_so(hub: FakeHub, bundle):
    lines = []
    push(hub, bundle, is_public=True, tell=lines.append)
    assert not hub.repositories[REPO].private
    assert "public" in lines[0]


def test_the_token_is_sent_to_the_hub_and_told_to_nobody(hub: FakeHub, bundle, capfd, caplog):
    lines = []
    plan = plan_push(REPO, is_public=False, tell=lines.append, token=hub.token, endpoint=hub.endpoint)
    hub.fail = lambda method, path: 400 if path.endswith("/commit/main") else None
    with caplog.at_level("DEBUG"), pytest.raises(RunError, match="the upload broke") as caught:
        push_bundle(bundle_of(bundle), plan=plan, tell=lines.append)
    api = [authorization for _, path, authorization in hub.requests if path.startswith("/api/")]
    assert set(api) == {f"Bearer {hub.token}"}
    told = [repr(plan), str(plan), str(caught.value), *lines, *capfd.readouterr(), caplog.text]
    assert not [text for text in told if hub.token in text]
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_a_token_in_the_hubs_own_words_is_taken_out(hub: FakeHub, bundle, monkeypatch):
    def upload(*args, **kwargs):
        raise ValueError(f"bad header: Bearer {hub.token}")

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    with pytest.raises(RunError, match=r"Bearer \*\*\*"):
        push(hub, bundle)


@pytest.mark.parametrize(("how", "at", "num_sent"), [(403, "file", 1), (400, "file", 1), ("drop", "end", 2)])
def test_a_push_that_broke_goes_on_without_what_it_had_sent(hub: FakeHub, bundle, how, at, num_sent):
    first = {}

    def fail(method, path):
        is_second_file = method == "PUT" and path != first.setdefault("path", path)
        return how if (is_second_file if at == "file" else path.endswith("/commit/main")) else None

    hub.fail = fail
    with pytest.raises(RunError, match=rf"--push {REPO}: "):
        push(hub, bundle)
    assert len(hub.uploads) == num_sent
    hub.fail = lambda method, path: None
    push(hub, bundle)
    assert len(hub.uploads) == 2 and len(set(hub.uploads)) == 2
    assert hub.repositories[REPO].files == snapshot(bundle)


def test_the_command_to_go_on_with_can_be_typed_whatever_the_folder_is_called(hub: FakeHub, bundle, tmp_path):
    odd = bundle.rename(tmp_path / "my bundle; x")
    hub.fail = lambda method, path: 400 if path.endswith("/commit/main") else None
    with pytest.raises(RunError, match="go on with") as caught:
        push(hub, odd, is_public=True)
    words = shlex.split(str(caught.value).partition("go on with: ")[2])
    assert words[:3] == ["python", "-m", "qlora_ray.export"]
    arguments = make_parser().parse_args(words[3:])
    assert (arguments.source, arguments.push, arguments.public) == (odd, REPO, True)


def test_a_hub_that_stumbles_once_is_asked_again(hub: FakeHub, bundle):
    stumbles = iter([500])
    hub.fail = lambda method, path: next(stumbles, None) if method == "PUT" else None
    push(hub, bundle)
    assert hub.repositories[REPO].files == snapshot(bundle)


def test_a_bundle_that_is_there_as_it_is_is_not_sent_again(hub: FakeHub, bundle):
    push(hub, bundle)
    asked = len(hub.requests)
    assert push(hub, bundle) == f"{hub.endpoint}/{REPO}"
    again = [(method, path) for method, path, _ in hub.requests[asked:]]
    assert again and not [one for one in again if one[0] == "PUT" or one[1].endswith("/commit/main")]
    assert hub.repositories[REPO].files == snapshot(bundle)


def test_no_file_of_an_earlier_bundle_is_left_beside_a_newer_one(hub: FakeHub, bundle):
    hub.repositories[REPO] = FakeRepository(True, {".gitattributes": b"*.safetensors filter=lfs\n"})
    (bundle / "scores.json").write_text('{"trial": "0005"}')
    (bundle / "report.html").write_text("<html>")
    push(hub, bundle)
    assert hub.repositories[REPO].files.keys() >= {"scores.json", "report.html"}
    for name in ("scores.json", "report.html"):
        (bundle / name).unlink()
    (bundle / "merged" / "model.safetensors").rename(bundle / "merged" / "model-00001-of-00001.safetensors")
    push(hub, bundle)
    assert hub.repositories[REPO].files.keys() == snapshot(bundle).keys() | {".gitattributes"}


@pytest.mark.parametrize(
    ("repo_id", "role", "there", "message"),
    [
        ("bob/model", "write", None, r"the token is of ann\. Try ann/model"),
        ("bob/model", "fineGrained", None, "--push bob/model: the token may not write there"),
        (REPO, "read", None, "a token that may write"),
        (REPO, "write", FakeRepository(True, {"README.md": b"", "pytorch_model.bin": b"x"}), "pytorch_model"),
        (REPO, "write", FakeRepository(False), r"is there and public.*--public"),
    ],
)
def test_a_repository_that_is_not_ours_to_write_is_refused(hub, bundle, repo_id, role, there, message):
    hub.role = role
    if there is not None:
        hub.repositories[repo_id] = there
    before = copy.deepcopy(hub.repositories)
    with pytest.raises(RunError, match=message):
        push(hub, bundle, repo_id=repo_id)
    assert (hub.repositories, hub.uploads) == (before, [])


def test_a_team_of_the_user_may_have_the_name(hub: FakeHub, bundle):
    push(hub, bundle, repo_id="team/model")
    assert hub.repositories["team/model"].private


def test_a_name_that_is_taken_unseen_is_said_to_be(hub: FakeHub, bundle):
    hub.fail = lambda method, path: 409 if path == "/api/repos/create" else None
    with pytest.raises(RunError, match=r"the name is taken .* is whole"):
        push(hub, bundle)


def test_a_private_repository_stays_private(hub: FakeHub, bundle):
    hub.repositories[REPO] = FakeRepository(True)
    lines = []
    push(hub, bundle, is_public=True, tell=lines.append)
    assert hub.repositories[REPO].private
    assert len(lines) == 1 and REPO in lines[0] and "private" in lines[0]


def test_a_hub_that_falls_silent_while_a_bundle_is_sent_is_given_up(hub: FakeHub, bundle, monkeypatch):
    monkeypatch.setattr(hub_module, "STALL_TIMEOUT_S", 0.2)
    hub.fail = lambda method, path: "hang" if path.endswith("/commit/main") else None
    before = huggingface_hub.get_session().timeout
    with pytest.raises(RunError, match=r"the upload broke: .*timed out"):
        push(hub, bundle)
    # Others of this process that use the library wait as before.
    assert huggingface_hub.get_session().timeout == before
