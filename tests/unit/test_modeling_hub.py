"""Which commit a name of the hub stands for, and how few requests it takes to know that it cannot be had."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_fixtures import FIRST, SECOND, DownloadHub, use_download_hub, use_endpoint
from huggingface_hub import constants
from model_fixtures import copy_base

from qlora_ray.config.schema import Model
from qlora_ray.errors import ModelError
from qlora_ray.modeling.hub import find_cached, find_commit
from qlora_ray.modeling.identity import check_base
from qlora_ray.modeling.loading import hash_base, load_base, load_tokenizer, pin_revision, read_shape
from qlora_ray.modeling.quantization import QuantizationSpec

NAME = "org/tiny"
PLAIN = QuantizationSpec("none", 32, "torch", None, False, "fp32")


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
    assert load_base(pinned, quantization=PLAIN, device="cpu").model.config.rms_norm_eps != 1e-3
    assert load_base(Model(name=NAME), quantization=PLAIN, device="cpu").model.config.rms_norm_eps == 1e-3


def test_a_base_that_was_loaded_is_loaded_again_without_the_hub_and_after_one_request(hub: DownloadHub) -> None:
    model = Model(name=NAME)
    load_base(model, quantization=PLAIN, device="cpu")
    hub.is_away = True
    hub.requests.clear()
    pinned = pin_revision(model)
    assert pinned.revision == FIRST
    assert load_base(pinned, quantization=PLAIN, device="cpu").model.config.num_hidden_layers == 4
    assert (len(load_tokenizer(model)), read_shape(model).num_layers) == (1024, 4)
    assert hash_base(model) == f"hub:{NAME}@{FIRST}"
    assert len(hub.requests) == 1


def test_a_cache_that_lacks_what_the_base_never_had_is_asked_for_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As `hf download` leaves it: no marks for the files that are not in the repository.
    home = tmp_path / "cache" / "models--org--tiny"
    (home / "snapshots").mkdir(parents=True)
    copy_base(home / "snapshots" / FIRST)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(FIRST)
    with use_download_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.is_away = True
        assert find_cached(NAME, revision=None) == FIRST
        load_base(Model(name=NAME), quantization=PLAIN, device="cpu")
        assert len(hub.requests) == 1
        assert constants.HF_HUB_OFFLINE


def test_a_hub_that_is_away_and_no_cache_are_one_request_and_one_message(hub: DownloadHub) -> None:
    hub.is_away = True
    for name in ("org/unknown", "nope"):
        hub.requests.clear()
        with pytest.raises(
            ModelError, match=rf"^model\.name: {name} is neither a folder here nor in the cache, and http"
        ):
            load_base(Model(name=name), quantization=PLAIN, device="cpu")
        assert len(hub.requests) == 1
    assert not constants.HF_HUB_OFFLINE


def test_an_address_where_nobody_listens_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        use_endpoint(endpoint, tmp_path / "cache", monkeypatch)
        with pytest.raises(
            ModelError, match=rf"and {endpoint} cannot be reached: .*refused\. Check the name and the n"
        ):
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


def test_a_commit_is_not_asked_for(hub: DownloadHub) -> None:
    assert find_commit(NAME, revision=SECOND) == SECOND
    assert hub.requests == []


def test_a_token_that_cannot_be_sent_is_not_quoted(hub: DownloadHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_se\x0bcret")
    with pytest.raises(ModelError) as caught:
        find_commit(NAME, revision=None)
    assert "cret" not in str(caught.value)
