"""Pushing a bundle to a hub that runs on this machine: what is sent, what is refused, and what is never told."""

from __future__ import annotations

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
from qlora_ray.exporting.inventory import Bundle, list_files
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


class Lines(list):
    """Lines that a user was told."""

    def __call__(self, line):
        self.append(line)


def push(hub, bundle, *, repo_id=REPO, is_public=False, lines=None):
    lines = Lines() if lines is None else lines
    plan = plan_push(repo_id, is_public=is_public, tell=lines, token=hub.token, endpoint=hub.endpoint)
    return push_bundle(bundle_of(bundle), plan=plan, tell=lines)


def bundle_of(folder: Path) -> Bundle:
    return Bundle(folder, {"files": [{"path": path} for path in list_files(folder) if path != "bundle.json"]})


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_file_arrives_byte_by_byte_in_a_private_repository(hub: FakeHub, bundle):
    url = push(hub, bundle)
    assert url == f"{hub.endpoint}/{REPO}"
    assert hub.repositories[REPO].files == files_of(bundle)
    assert hub.repositories[REPO].private
    assert hub.created == [{"name": REPO.split("/")[1], "organization": "ann", "visibility": "private"}]


def test_what_was_put_beside_the_bundles_files_stays_here(hub: FakeHub, bundle):
    before = files_of(bundle)
    written = bundle_of(bundle)
    (bundle / "results").mkdir()
    (bundle / "results" / "secret.txt").write_text("x")
    plan = plan_push(REPO, is_public=False, tell=print, token=hub.token, endpoint=hub.endpoint)
    push_bundle(written, plan=plan, tell=print)
    assert hub.repositories[REPO].files == before


def test_public_says_so(hub: FakeHub, bundle):
    lines = Lines()
    push(hub, bundle, is_public=True, lines=lines)
    assert not hub.repositories[REPO].private
    assert lines == [f"made {hub.endpoint}/{REPO}, public"]


def test_the_token_is_sent_to_the_hub_and_told_to_nobody(hub: FakeHub, bundle, capfd, caplog):
    lines = Lines()
    plan = plan_push(REPO, is_public=False, tell=lines, token=hub.token, endpoint=hub.endpoint)
    hub.fail = lambda method, path: 400 if path.endswith("/commit/main") else None
    with caplog.at_level("DEBUG"), pytest.raises(RunError, match="the upload broke") as caught:
        push_bundle(bundle_of(bundle), plan=plan, tell=lines)
    api = [authorization for _, path, authorization in hub.requests if path.startswith("/api/")]
    assert set(api) == {f"Bearer {hub.token}"}
    captured = capfd.readouterr()
    told = [repr(plan), str(plan), str(caught.value), *lines, captured.out, captured.err, caplog.text]
    assert not [text for text in told if hub.token in text]
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_a_token_in_the_hubs_own_words_is_taken_out(hub: FakeHub, bundle, monkeypatch):
    from huggingface_hub import HfApi

    def upload(*args, **kwargs):
        raise ValueError(f"bad header: Bearer {hub.token}")

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    with pytest.raises(RunError, match=r"bad header: Bearer \*\*\*"):
        push(hub, bundle)


@pytest.mark.parametrize("how", [403, 400])
def test_a_push_that_broke_goes_on_without_what_it_had_sent(hub: FakeHub, bundle, how):
    first = {}

    def fail_second_file(method, path):
        if method != "PUT":
            return None
        first.setdefault("path", path)
        return how if path != first["path"] else None

    hub.fail = fail_second_file
    with pytest.raises(RunError, match=rf"--push {REPO}: "):
        push(hub, bundle)
    assert len(hub.uploads) == 1
    hub.fail = lambda method, path: None
    push(hub, bundle)
    assert len(hub.uploads) == 2 and len(set(hub.uploads)) == 2
    assert hub.repositories[REPO].files == files_of(bundle)


def test_a_connection_that_is_cut_at_the_end_costs_only_the_end(hub: FakeHub, bundle):
    hub.fail = lambda method, path: "drop" if path.endswith("/commit/main") else None
    with pytest.raises(RunError, match=r"the upload broke: .*go on with: python -m qlora_ray\.export \S+ --push"):
        push(hub, bundle)
    sent = list(hub.uploads)
    hub.fail = lambda method, path: None
    push(hub, bundle)
    assert hub.uploads == sent and len(sent) == 2
    assert hub.repositories[REPO].files == files_of(bundle)


def test_the_command_to_go_on_with_can_be_typed_whatever_the_folder_is_called(hub: FakeHub, bundle, tmp_path):
    odd = bundle.rename(tmp_path / "my bundle; x")
    hub.fail = lambda method, path: 400 if path.endswith("/commit/main") else None
    with pytest.raises(RunError, match="go on with: python") as caught:
        push(hub, odd, is_public=True)
    words = shlex.split(str(caught.value).partition("go on with: ")[2])
    assert words[:3] == ["python", "-m", "qlora_ray.export"]
    arguments = make_parser().parse_args(words[3:])
    assert (arguments.source, arguments.push, arguments.public) == (odd, REPO, True)


def test_a_hub_that_stumbles_once_is_asked_again(hub: FakeHub, bundle):
    stumbles = iter([500])
    hub.fail = lambda method, path: next(stumbles, None) if method == "PUT" else None
    push(hub, bundle)
    assert hub.repositories[REPO].files == files_of(bundle)


def test_a_bundle_that_is_there_as_it_is_is_not_sent_again(hub: FakeHub, bundle):
    push(hub, bundle)
    asked = len(hub.requests)
    assert push(hub, bundle) == f"{hub.endpoint}/{REPO}"
    again = [(method, path) for method, path, _ in hub.requests[asked:]]
    assert again and not [one for one in again if one[0] == "PUT" or one[1].endswith("/commit/main")]
    assert hub.repositories[REPO].files == files_of(bundle)


def test_a_newer_bundle_replaces_the_older_ones_weights(hub: FakeHub, bundle):
    push(hub, bundle)
    (bundle / "merged" / "model.safetensors").rename(bundle / "merged" / "model-00001-of-00001.safetensors")
    push(hub, bundle)
    assert hub.repositories[REPO].files == files_of(bundle)


def test_no_file_of_an_earlier_bundle_is_left_beside_a_newer_one(hub: FakeHub, bundle):
    hub.repositories[REPO] = FakeRepository(True, {".gitattributes": b"*.safetensors filter=lfs\n"})
    (bundle / "scores.json").write_text('{"trial": "0005"}')
    (bundle / "report.html").write_text("<html>")
    push(hub, bundle)
    assert hub.repositories[REPO].files.keys() >= {"scores.json", "report.html"}
    for name in ("scores.json", "report.html"):
        (bundle / name).unlink()
    push(hub, bundle)
    assert hub.repositories[REPO].files.keys() == files_of(bundle).keys() | {".gitattributes"}


def test_a_name_under_another_user_is_refused_before_anything_is_made(hub: FakeHub, bundle):
    with pytest.raises(RunError, match=r"the token is of ann\. Try ann/model"):
        push(hub, bundle, repo_id="bob/model")
    assert hub.created == []


def test_a_fine_grained_token_is_told_by_the_hub_where_it_may_not_write(hub: FakeHub, bundle):
    hub.role = "fineGrained"
    with pytest.raises(RunError, match=r"--push bob/model: the token may not write there: the name is another's"):
        push(hub, bundle, repo_id="bob/model")


def test_a_token_that_may_only_read_is_refused(hub: FakeHub, bundle):
    hub.role = "read"
    with pytest.raises(RunError, match="needs a token that may write"):
        push(hub, bundle)


def test_a_team_of_the_user_may_have_the_name(hub: FakeHub, bundle):
    push(hub, bundle, repo_id="team/model")
    assert hub.repositories["team/model"].private


def test_a_name_that_is_taken_unseen_is_said_to_be(hub: FakeHub, bundle):
    hub.fail = lambda method, path: 409 if path == "/api/repos/create" else None
    with pytest.raises(RunError, match=r"the name is taken .* The bundle itself is whole"):
        push(hub, bundle)


def test_a_repository_with_other_things_in_it_is_left_alone(hub: FakeHub, bundle):
    hub.repositories[REPO] = FakeRepository(True, {"README.md": b"", "pytorch_model.bin": b"x"})
    with pytest.raises(RunError, match=r"must be new or hold an earlier bundle, got a repository with pytorch_model"):
        push(hub, bundle)
    assert hub.uploads == []


def test_a_private_push_does_not_go_to_a_public_repository(hub: FakeHub, bundle):
    hub.repositories[REPO] = FakeRepository(False)
    with pytest.raises(RunError, match=r"is there and public.*Add --public"):
        push(hub, bundle)
    assert hub.uploads == []


def test_a_private_repository_stays_private(hub: FakeHub, bundle):
    hub.repositories[REPO] = FakeRepository(True)
    lines = Lines()
    push(hub, bundle, is_public=True, lines=lines)
    assert hub.repositories[REPO].private
    assert lines == [f"{REPO} is there and private: it stays so. Its settings page makes it public."]


def test_a_hub_that_falls_silent_while_a_bundle_is_sent_is_given_up(hub: FakeHub, bundle, monkeypatch):
    monkeypatch.setattr(hub_module, "STALL_TIMEOUT_S", 0.2)
    hub.fail = lambda method, path: "hang" if path.endswith("/commit/main") else None
    before = huggingface_hub.get_session().timeout
    with pytest.raises(RunError, match=r"the upload broke: .*timed out.*The bundle is whole; go on with"):
        push(hub, bundle)
    # Others of this process that use the library wait as before.
    assert huggingface_hub.get_session().timeout == before
