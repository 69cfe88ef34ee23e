"""The config of auxiliary heads: classifiers of the last hidden state, trained beside the language model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from qlora_ray.config.section import Section

Pooling = Literal["prompt", "last", "mean"]
# The only key of a head that trials of one sweep can differ in; 0 leaves the head out.
WEIGHT = "weight"


def _check_name(name: str) -> str:
    # PEFT takes every parameter with this in its name for one of the adapter.
    if "lora_" in name:
        raise ValueError("must not have lora_ in its name, which is the adapter's")
    return name


HeadName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$"), AfterValidator(_check_name)]


class Head(Section):
    """A linear classifier on the base's last hidden state."""

    column: str = Field(description="The column of the rows that holds the label; a row without one takes no part.")
    classes: Literal["auto"] | Annotated[list[str], Field(min_length=2)] = Field(
        "auto", description="The labels; auto: those of the training rows, sorted."
    )
    weight: Annotated[float, Field(ge=0)] = Field(
        1.0, description="What its loss is multiplied with; 0 leaves the head out."
    )
    pooling: Pooling = Field("prompt", description="The hidden state of the prompt's last token, of the row's, or all.")

    @field_validator("classes", mode="before")
    @classmethod
    def _numbers_are_texts(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        return [str(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in value]

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and len(set(value)) < len(value):
            raise ValueError("must differ from each other")
        return value
