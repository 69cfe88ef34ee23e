"""What all sections of the config have in common."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A config section: unknown keys fail, values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        # pydantic takes it for 1.
        if info.field_name is not None and _has_bool(value):
            types = _types_in(cls.model_fields[info.field_name].annotation)
            if types & {int, float} and not any(issubclass(one, bool | Section) for one in types):
                raise ValueError("must be a number, and no true or false")
        return value


def _has_bool(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_bool, value.values()))
    return any(map(_has_bool, value)) if isinstance(value, list) else isinstance(value, bool)


def _types_in(annotation: Any) -> set[type]:
    """All classes that an annotation is made of."""
    own = {annotation} if isinstance(annotation, type) and not get_args(annotation) else set()
    return own.union(*map(_types_in, get_args(annotation)))
