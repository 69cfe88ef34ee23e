"""What the user is told of a bundle."""

from __future__ import annotations

from pathlib import Path

from qlora_ray.export import make_parser
from qlora_ray.exporting.delivery import describe_bundle, next_commands
from qlora_ray.exporting.inventory import Bundle

FILES = [
    {"path": "README.md", "bytes": 512},
    {"path": "adapter/adapter_model.safetensors", "bytes": 1024},
    {"path": "adapter/tokenizer.json", "bytes": 1024},
    {"path": "merged/model.safetensors", "bytes": 3 * 2**30},
]
BUNDLE = Bundle(Path("out/b"), {"name": "x_SFT_LoRa4_QLORA_w4_headfp32", "files": FILES}, notes=("look",))


def test_folders_are_summed_and_notes_come_last():
    assert describe_bundle(BUNDLE) == [
        "bundle  out/b (3 GiB): x_SFT_LoRa4_QLORA_w4_headfp32",
        "  README.md               512 B",
        "  adapter/                2 KiB",
        "  merged/                 3 GiB",
        "note: look",
    ]


def test_the_next_commands_evaluate_and_push_and_can_be_typed():
    lines = next_commands(BUNDLE, is_pushed=False)
    assert lines[0].endswith("python -m qlora_ray.evaluate out/b")
    pushed = next(line for line in lines if "--push" in line).partition("qlora_ray.export ")[2]
    arguments = make_parser().parse_args(pushed.split())
    assert arguments.source == Path("out/b") and arguments.push == "USER/x_SFT_LoRa4_QLORA_w4_headfp32"
    assert not [line for line in next_commands(BUNDLE, is_pushed=True) if "--push" in line]
