"""What would stop a push is found before it begins: tokens, names, networks, repositories that are another's."""

from __future__ import annotations

import socket

import huggingface_hub.constants
import pytest

from qlora_ray.errors import ConfigError, QloraRayError, RunError
from qlora_ray.exporting import hub_plan as plan_module
from qlora_ray.exporting.hub_plan import check_repo_id, check_user, name_repository, plan_push
from qlora_ray.modeling.hub import GAVE_UP
from tests.fake_hub import FakeHub, FakeRepository

REPO = "ann/embedded-classicmodels_SFT_LoRa4_QLORA_w4_headbf16"
pytestmark = pytest.mark.usefixtures("online")


def plan(hub, repo_id=REPO, *, is_public=False, token=None):
    return plan_push(repo_id, is_public=is_public, tell=print, token=token or hub.token, endpoint=hub.endpoint)


@pytest.mark.parametrize("token", ["hf_lineone\nhf_linetwo", "hf_top\u20acsecret", "hf_top\x00secret", "hf_top secret"])
@pytest.mark.parametrize("source", ["argument", "environment", "file"])
def test_a_token_that_no_header_can_carry_is_refused_and_not_told(hub, monkeypatch, tmp_path, capfd, token, source):
    if source == "environment" and "\x00" not in token:
        monkeypatch.setenv("HF_TOKEN", token)
    elif source == "file":
        (tmp_path / ".env").write_text(f'HF_TOKEN="{token}"\n', encoding="utf-8")
    else:
        source = "argument"
    with pytest.raises(ConfigError, match="printable ASCII") as caught:
        plan_push(
            REPO, is_public=False, tell=print, token=token if source == "argument" else None, endpoint=hub.endpoint
        )
    told = str(caught.value) + "".join(capfd.readouterr())
    assert not [part for part in ("hf_top", "hf_line", "secret") if part in told]
    assert hub.requests == []


def test_an_existing_repository_is_checked_for_whose_it_is_and_what_the_token_may(hub: FakeHub):
    for repo_id in ("bob/theirs", REPO):
        hub.repositories[repo_id] = FakeRepository(False, {"README.md": b"x"})
    with pytest.raises(RunError, match="got another's: the token is of ann"):
        plan(hub, "bob/theirs", is_public=True)
    hub.role = "read"
    with pytest.raises(RunError, match="a token that may write"):
        plan(hub, is_public=True)


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [("bob/model", None, "bob"), (REPO, "hf_other", "the hub does not know the token"), ("nope", None, "USER/REPO")],
)
def test_every_refusal_is_one_line(hub: FakeHub, repo_id, token, message):
    with pytest.raises(QloraRayError, match=f"--push.*{message}") as caught:
        plan(hub, repo_id, token=token)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("model", "no user in it"),
        ("/model", "no user in it"),
        ("a/b/c", "must be in the form"),
        ("ann/my model", "must use alphanumeric"),
        ("ann/a--b", "Cannot have -- or .."),
        ("ann/" + "x" * 97, "maximum length"),
    ],
)
def test_a_name_that_is_none_is_refused_before_the_network_is_asked(name, why):
    with pytest.raises(ConfigError, match=f"--push: must be USER/REPO, got .*{why}"):
        check_repo_id(name)


@pytest.mark.parametrize(("gave_up", "got"), [("", "HF_HUB_OFFLINE=1"), ("1", r"no answer from http\S+")])
def test_offline_is_said_at_once_and_the_users_setting_is_named_only_where_it_is_one(monkeypatch, gave_up, got):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    # Set when a hub did not answer while the base was looked for.
    monkeypatch.setenv(GAVE_UP, gave_up)
    with pytest.raises(RunError, match=f"needs the network, got {got}") as caught:
        plan_push(REPO, is_public=False, tell=print, token="hf_x")
    assert ("HF_HUB_OFFLINE" in str(caught.value)) == (not gave_up)


def test_a_hub_that_is_not_there_is_asked_once():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        # Bound and not listening: every connection is refused.
        endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(RunError, match=rf"{endpoint} cannot be reached: .*refused"):
            plan_push(REPO, is_public=False, tell=print, token="hf_x", endpoint=endpoint)


@pytest.mark.parametrize(
    ("route", "failure", "cause"),
    [("/api/models/", "hang", "timed out"), ("/api/whoami", "hang", "timed out"), ("/api/whoami", "drop", "")],
)
def test_a_hub_that_hangs_up_or_never_answers_is_given_up(hub: FakeHub, monkeypatch, route, failure, cause):
    monkeypatch.setattr(plan_module, "REACH_TIMEOUT_S", 0.2)
    hub.fail = lambda method, path: failure if path.startswith(route) else None
    with pytest.raises(RunError, match=f"--push {REPO}: {hub.endpoint} cannot be reached: .*{cause}"):
        plan(hub)


def test_a_user_alone_is_checked_before_the_repositorys_name_is_known(hub: FakeHub):
    settings = {"token": hub.token, "endpoint": hub.endpoint}
    check_user("ann", **settings)
    check_user("team", **settings)
    assert hub.created == []
    with pytest.raises(RunError, match=r"--push bob: .*the token is of ann"):
        check_user("bob", **settings)
    with pytest.raises(RunError, match=r"--push ann: the hub does not know the token"):
        check_user("ann", token="hf_other", endpoint=hub.endpoint)
    with pytest.raises(ConfigError, match=r"must be USER/REPO"):
        check_user("", **settings)
    hub.role = "read"
    with pytest.raises(RunError, match=r"--push ann: .*may write"):
        check_user("ann", **settings)


def test_a_user_alone_gets_a_repository_of_the_bundles_name():
    assert name_repository("ann", name="base-data_SFT") == "ann/base-data_SFT"
    assert name_repository("ann/own", name="base-data_SFT") == "ann/own"


def test_without_a_token_the_message_says_where_one_goes():
    with pytest.raises(ConfigError, match=r"needs a token, got none\. Set HF_TOKEN"):
        plan_push(REPO, is_public=False, tell=print)
