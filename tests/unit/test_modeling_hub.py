"""Which commit a name of the hub stands for, and how few requests it takes to know that it cannot be had."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from qlora_ray.config.schema import Model
from qlora_ray.errors import ModelError
from qlora_ray.exporting.merge import checkpoint as shards
from qlora_ray.exporting.merge.checkpoint import open_checkpoint
from qlora_ray.modeling import loading
from qlora_ray.modeling.hub import find_cached, find_commit, gave_up, reach_repository
from qlora_ray.modeling.identity import check_base
from qlora_ray.modeling.loading import LoadedBase, hash_base, load_base, load_tokenizer, pin_revision, read_shape
from qlora_ray.modeling.quantization import QuantizationSpec
from tests.unit.hub_fixtures import FIRST, SECOND, DownloadHub, use_download_hub, use_endpoint
from tests.unit.model_fixtures import copy_base

NAME = "org/tiny"
PLAIN = QuantizationSpec("none", 32, "torch", None, False, "fp32")
BY_MAIN_AND_BY_COMMIT = pytest.mark.parametrize("revision", [None, FIRST], ids=["main", "commit"])


def load(revision: str | None = None, *, name: str = NAME) -> LoadedBase:
    """A base of the hub, unquantized."""
    return load_base(Model(name=name, revision=revision), quantization=PLAIN, device="cpu")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DownloadHub]:
    """A hub with the embedded base as org/tiny."""
    with use_download_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.publish(NAME, FIRST, copy_base(tmp_path / "first"))
        yield hub


def move_main(hub: DownloadHub, folder: Path) -> None:
    """A new commit, which changes the config."""
    copy_base(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    hub.publish(NAME, SECOND, folder)


def test_a_hub_base_is_known_by_its_commit_and_one_whose_main_moved_is_another(
    hub: DownloadHub, tmp_path: Path
) -> None:
    expected = hash_base(Model(name=NAME))
    assert expected == f"hub:{NAME}@{FIRST}"
    move_main(hub, tmp_path / "second")
    with pytest.raises(ModelError, match=rf"got hub:{NAME}@{SECOND}.*--set model\.revision={FIRST}\.$"):
        check_base(Model(name=NAME), expected_hash=expected, where="adapter")
    assert check_base(Model(name=NAME, revision=FIRST), expected_hash=expected, where="adapter") is None


def test_a_fingerprint_of_a_branch_is_one_that_cannot_be_verified(hub: DownloadHub) -> None:
    note = check_base(Model(name=NAME), expected_hash=f"hub:{NAME}@main", where="adapter")
    assert note is not None and note.startswith("the base could not be verified")
    with pytest.raises(ModelError, match="must be used on the base it was trained on"):
        check_base(Model(name=NAME), expected_hash="hub:org/other@main", where="adapter")


def test_what_is_pinned_is_what_is_loaded_after_main_has_moved(hub: DownloadHub, tmp_path: Path) -> None:
    pinned = pin_revision(Model(name=NAME))
    move_main(hub, tmp_path / "second")
    assert load(pinned.revision).model.config.rms_norm_eps != 1e-3
    assert load().model.config.rms_norm_eps == 1e-3


# As a sweep begins, and as everything after it goes on: resumes, executors, evaluate, export.
@BY_MAIN_AND_BY_COMMIT
def test_a_base_that_was_loaded_is_loaded_again_without_the_hub_and_after_one_request(
    hub: DownloadHub, revision: str | None
) -> None:
    model = Model(name=NAME, revision=revision)
    load(revision)
    hub.is_away = True
    hub.requests.clear()
    pinned = pin_revision(model)
    assert pinned.revision == FIRST
    assert load(pinned.revision).model.config.num_hidden_layers == 4
    assert (len(load_tokenizer(model)), read_shape(model).num_layers) == (1024, 4)
    assert hash_base(model) == f"hub:{NAME}@{FIRST}"
    assert len(hub.requests) == 1


@BY_MAIN_AND_BY_COMMIT
def test_a_cache_that_lacks_what_the_base_never_had_is_asked_for_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    # As `hf download` leaves it: no marks for the files that are not in the repository.
    home = tmp_path / "cache" / "models--org--tiny"
    (home / "snapshots").mkdir(parents=True)
    copy_base(home / "snapshots" / FIRST)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(FIRST)
    with use_download_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.is_away = True
        assert find_cached(NAME, revision=revision) == FIRST
        load(revision)
        assert len(hub.requests) == 1
        assert constants.HF_HUB_OFFLINE and gave_up()


@BY_MAIN_AND_BY_COMMIT
def test_a_hub_that_is_away_and_no_cache_are_one_request_and_one_message(
    hub: DownloadHub, revision: str | None
) -> None:
    hub.is_away = True
    for name in ("org/unknown", "nope"):
        hub.requests.clear()
        with pytest.raises(ModelError, match=rf"^model\.name: {name} is neither .* nor in the cache, and http"):
            load(revision, name=name)
        assert len(hub.requests) == 1
    assert not constants.HF_HUB_OFFLINE


def test_an_address_where_nobody_listens_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        use_endpoint(endpoint, tmp_path / "cache", monkeypatch)
        with pytest.raises(ModelError, match=rf"{endpoint} cannot be reached: .*refused\. Check the name"):
            find_commit("org/tiny", revision=None, where="target")


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("org/gone", None, r"org/gone is neither a folder here nor a model on the hub\. Check the name"),
        (NAME, "v9", r"org/tiny has no revision v9\. Correct model\.revision"),
        ("a--b/c", None, r"a--b/c is no name of the hub: .*\. Correct it"),
    ],
)
def test_a_name_that_the_hub_does_not_know_is_said(
    hub: DownloadHub, name: str, revision: str | None, words: str
) -> None:
    with pytest.raises(ModelError, match=rf"^model\.name: {words}"):
        find_commit(name, revision=revision)
    assert len(hub.requests) <= 1


def test_a_commit_stands_for_itself_and_is_asked_for_once_where_it_is_loaded(hub: DownloadHub) -> None:
    assert find_commit(NAME, revision=SECOND) == SECOND
    assert hub.requests == []
    pinned = Model(name=NAME, revision=FIRST)
    for read in (lambda: load(FIRST), lambda: load_tokenizer(pinned)):
        hub.requests.clear()
        read()
        assert hub.requests.count(f"GET /api/models/{NAME}/revision/{FIRST}") == 1
    with pytest.raises(ModelError, match=rf"^model\.name: {NAME} has no revision {SECOND}"):
        load_tokenizer(Model(name=NAME, revision=SECOND))


def test_a_hub_that_goes_away_while_a_sweep_runs_is_asked_once_more(hub: DownloadHub) -> None:
    pinned = Model(name=NAME, revision=FIRST)
    load(FIRST)
    hub.requests.clear()
    hub.is_away = True
    for _ in range(2):
        load_tokenizer(pinned)
    assert len(hub.requests) == 1


@BY_MAIN_AND_BY_COMMIT
@pytest.mark.parametrize("how", ["link", "dots", "relative"])
def test_the_cache_may_be_a_link_or_a_path_that_is_not_the_shortest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, revision: str | None
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    cache = {"link": tmp_path / "link", "dots": tmp_path / "real/../real", "relative": Path("real")}[how]
    with use_download_hub(cache, monkeypatch) as hub:
        hub.publish(NAME, FIRST, copy_base(tmp_path / "first"))
        model = Model(name=NAME, revision=revision)
        assert pin_revision(model).revision == FIRST
        assert len(load_tokenizer(model)) == 1024
        hub.is_away = True
        assert find_cached(NAME, revision=revision) == FIRST
        assert pin_revision(model).revision == FIRST


BAD_TOKEN = (401, {"X-Error-Message": "Invalid credentials in Authorization header"})


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (BAD_TOKEN, r"the hub does not know the token .* org/tiny \(401\)\. Renew HF_TOKEN"),
        ((403, {}), r"the hub does not let .* org/tiny \(403\)\. Ask for access, .* another HF_TOKEN"),
        ((403, {"X-Error-Code": "GatedRepo"}), r"org/tiny is gated\. Ask for access .* HF_TOKEN"),
        ((418, {}), r"org/tiny cannot be had, the hub answers 418: "),
    ],
)
@BY_MAIN_AND_BY_COMMIT
def test_a_hub_that_refuses_is_no_hub_that_is_away(
    hub: DownloadHub, refusal: tuple[int, dict[str, str]], words: str, revision: str | None
) -> None:
    model = Model(name=NAME, revision=revision)
    hub.refusal = refusal
    with pytest.raises(ModelError, match=rf"^model\.name: {words}") as caught:
        load_tokenizer(model)
    assert "HF_HUB_OFFLINE" not in str(caught.value)
    hub.refusal = None
    load_tokenizer(model)
    hub.refusal = refusal
    with pytest.raises(ModelError, match=rf"^model\.name: {words}.*; HF_HUB_OFFLINE=1 uses the cached one;"):
        load_tokenizer(model)
    assert not constants.HF_HUB_OFFLINE and not gave_up()


@pytest.mark.parametrize("status", [429, 500, 503])
@BY_MAIN_AND_BY_COMMIT
def test_a_hub_that_is_busy_is_asked_again_and_then_the_cache_has_to_do(
    hub: DownloadHub, status: int, revision: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    hub.refusal = (status, {})
    with pytest.raises(ModelError, match=rf"nor in the cache, and http\S+ answers {status}\. Try again later"):
        reach_repository(NAME, revision=revision, where="model.name")
    assert len(hub.requests) == 3
    hub.refusal = None
    load_tokenizer(Model(name=NAME, revision=revision))
    hub.refusal = (status, {})
    caplog.clear()
    hub.requests.clear()
    # The library would ask six times for each file that the cache lacks.
    model = Model(name=NAME, revision=revision)
    assert len(load_tokenizer(model)) == 1024 and read_shape(model).num_layers == 4
    assert {request.split("/revision/")[0] for request in hub.requests} == {f"GET /api/models/{NAME}"}
    assert any(f"answers {status}: {NAME} is read from the cache" in message for message in caplog.messages)
    # Datasets, and a push, may be answered yet.
    assert not constants.HF_HUB_OFFLINE and not gave_up()


def test_who_went_offline_is_told(hub: DownloadHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE is set\. .* unset it"):
        find_commit(NAME, revision=None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    load_tokenizer(Model(name=NAME))
    hub.is_away = True
    find_commit(NAME, revision=None)
    with pytest.raises(ModelError, match=r"nor in the cache, and http\S+ could not be reached"):
        find_commit("org/other", revision=None)


def test_a_token_that_cannot_be_sent_is_not_quoted(hub: DownloadHub, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = Model(name=NAME, revision=FIRST)
    read_shape(pinned)  # the rest of the commit is still to be fetched
    monkeypatch.setenv("HF_TOKEN", "hf_se\x0bcret")

    def assert_refused(read: Callable[[Model], object], model: Model = pinned) -> None:
        with pytest.raises(ModelError, match="the token has characters that cannot be sent") as caught:
            read(model)
        assert "cret" not in str(caught.value)

    assert_refused(pin_revision, Model(name=NAME))
    for read in (load_tokenizer, open_checkpoint):
        assert_refused(read)
    # As a login that was damaged since the process asked.
    for module in (loading, shards):
        monkeypatch.setattr(module, "reach_repository", lambda *_, **__: True)
    for read in (load_tokenizer, open_checkpoint):
        assert_refused(read)
    assert not constants.HF_HUB_OFFLINE
