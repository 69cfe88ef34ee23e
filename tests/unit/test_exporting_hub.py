"""Pushing a bundle to a hub that runs on this machine: what is sent, what is refused, and what is never told."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import huggingface_hub.constants
import pytest

from qlora_ray.errors import ConfigError, QloraRayError, RunError
from qlora_ray.exporting.hub import check_repo_id, plan_push, push_bundle
from qlora_ray.exporting.inventory import Bundle, list_files
from tests.fake_hub import FakeHub, FakeRepository, running_hub

REPO = "ann/embedded-classicmodels_SFT_LoRa4_QLORA_w4_headbf16"
CARD = "---\nlibrary_name: peft\n---\n\n# A card\n"


@pytest.fixture(autouse=True)
def online_without_xet(monkeypatch, tmp_path):
    """The library reads its settings when it is imported; a folder of its own has no .env, no login is there."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub():
    with running_hub() as hub:
        yield hub


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


@pytest.mark.parametrize("token", ["hf_lineone\nhf_linetwo", "hf_top\u20acsecret", "hf_top\x00secret", "hf_top secret"])
@pytest.mark.parametrize("source", ["argument", "environment", "file"])
def test_a_token_that_no_header_can_carry_is_refused_and_not_told(hub, monkeypatch, tmp_path, capfd, token, source):
    if source == "environment" and "\x00" not in token:
        monkeypatch.setenv("HF_TOKEN", token)
    elif source == "file":
        (tmp_path / ".env").write_text(f'HF_TOKEN="{token}"\n', encoding="utf-8")
    else:
        source = "argument"
    with pytest.raises(ConfigError, match="must be one line of printable ASCII without spaces") as caught:
        plan_push(
            REPO, is_public=False, tell=print, token=token if source == "argument" else None, endpoint=hub.endpoint
        )
    told = str(caught.value) + "".join(capfd.readouterr())
    assert not [part for part in ("hf_top", "hf_line", "secret") if part in told]
    assert hub.requests == []


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


def test_a_hub_that_stumbles_once_is_asked_again(hub: FakeHub, bundle):
    stumbles = iter([500])
    hub.fail = lambda method, path: next(stumbles, None) if method == "PUT" else None
    push(hub, bundle)
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


def test_an_existing_repository_is_checked_for_whose_it_is_and_what_the_token_may(hub: FakeHub):
    hub.repositories["bob/theirs"] = FakeRepository(False, {"README.md": b"x"})
    hub.repositories[REPO] = FakeRepository(True, {"README.md": b"x"})
    settings = {"tell": print, "token": hub.token, "endpoint": hub.endpoint}
    with pytest.raises(RunError, match=r"got another's: the token is of ann"):
        plan_push("bob/theirs", is_public=True, **settings)
    hub.role = "read"
    with pytest.raises(RunError, match="needs a token that may write"):
        plan_push(REPO, is_public=False, **settings)


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


def test_a_token_that_the_hub_does_not_know_is_refused(hub: FakeHub):
    with pytest.raises(RunError, match=r"the hub does not know the token\. Check HF_TOKEN"):
        plan_push(REPO, is_public=False, tell=print, token="hf_other", endpoint=hub.endpoint)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("model", "no user in it"),
        ("a/b/c", "must be in the form"),
        ("ann/my model", "must use alphanumeric"),
        ("ann/a--b", "Cannot have -- or .."),
        ("ann/" + "x" * 97, "maximum length"),
    ],
)
def test_a_name_that_is_none_is_refused_before_the_network_is_asked(name, why):
    with pytest.raises(ConfigError, match=f"--push: must be USER/REPO, got .*{why}"):
        check_repo_id(name)


def test_offline_is_said_at_once(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match=r"needs the network, got HF_HUB_OFFLINE=1"):
        plan_push(REPO, is_public=False, tell=print, token="hf_x")


def test_a_hub_that_is_not_there_is_asked_once():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        # Bound and not listening: every connection is refused.
        endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(RunError, match=rf"{endpoint} cannot be reached: .*refused"):
            plan_push(REPO, is_public=False, tell=print, token="hf_x", endpoint=endpoint)


def test_a_hub_that_hangs_up_when_asked_whose_the_token_is_cannot_be_reached(hub: FakeHub):
    hub.fail = lambda method, path: "drop" if "whoami" in path else None
    with pytest.raises(RunError, match=rf"--push {REPO}: {hub.endpoint} cannot be reached: "):
        plan_push(REPO, is_public=False, tell=print, token=hub.token, endpoint=hub.endpoint)


def test_without_a_token_the_message_says_where_one_goes():
    with pytest.raises(ConfigError, match=r"needs a token, got none\. Set HF_TOKEN in the environment or in \.env"):
        plan_push(REPO, is_public=False, tell=print)


def test_every_refusal_is_one_line(hub: FakeHub):
    for repo_id, token in (("bob/model", hub.token), (REPO, "hf_other"), ("nope", hub.token)):
        with pytest.raises(QloraRayError, match="--push") as caught:
            plan_push(repo_id, is_public=False, tell=print, token=token, endpoint=hub.endpoint)
        assert "\n" not in str(caught.value)
