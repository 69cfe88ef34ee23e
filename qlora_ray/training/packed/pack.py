"""The trials whose adapters are in memory, and the stacks that hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from qlora_ray.modeling.auxiliary_heads import find_hidden_size
from qlora_ray.modeling.device_memory import as_out_of_memory
from qlora_ray.modeling.multi_lora.adapter_stack import AdapterStack, Matrix, StackKey
from qlora_ray.modeling.multi_lora.adapters import draw_adapter
from qlora_ray.modeling.multi_lora.wrapped_base import WrappedBase
from qlora_ray.training.packed.roster import PackedAdmission
from qlora_ray.training.packed.trial import PackedTrial
from qlora_ray.training.simulated_memory import SimulatedMemory


class Pack:
    """The admissions whose adapters are in memory. Touches the base, so its callers hold the engine's training lock.

    Args:
        wrapped: The base with its wrapped layers, which are in place while any trial is here.
        num_rows: Training rows there are.
        memory: The memory of the device that this one stands for; None on a real one.
    """

    def __init__(self, wrapped: WrappedBase, *, num_rows: int, memory: SimulatedMemory | None = None) -> None:
        self._memory = memory
        self._wrapped = wrapped
        self._num_rows = num_rows
        self._stacks: dict[StackKey, AdapterStack] = {}
        # Oldest first.
        self.admissions: list[PackedAdmission] = []

    def __len__(self) -> int:
        return len(self.admissions)

    @as_out_of_memory()
    def enter(self, admission: PackedAdmission) -> None:
        """Puts a trial's adapter in memory; `settle` must follow.

        Raises:
            QloraRayError: The adapter cannot be packed, or the state does not fit it.
            torch.OutOfMemoryError: There is no room for it. Nothing of the trial stays.
        """
        spec = admission.spec
        blueprint, tensors = draw_adapter(self._wrapped, spec.lora, seed=spec.training.seed)
        base = self._wrapped.base
        width = find_hidden_size(base.model)
        heads = tuple(Matrix(head.parameter_name, len(head.classes), width) for head in spec.heads)
        blueprint = blueprint.beside(heads)
        key = blueprint.key
        if key not in self._stacks:
            self._stacks[key] = AdapterStack(key, self._wrapped.widths, device=base.device)
        stack = self._stacks[key]
        try:
            admission.trial = PackedTrial(
                spec,
                blueprint,
                tensors,
                stack=stack,
                num_rows=self._num_rows,
                state=admission.state,
                scales_loss=base.precision == "fp16",
            )
            self._count_adapters(admission.trial)
        except BaseException:
            # A state that does not fit the trial, or no memory for its moments: no half of it stays.
            self._clear(stack, spec.trial_id)
            self._count_adapters()
            raise
        self.admissions.append(admission)

    def leave(self, is_leaving: Callable[[PackedAdmission], bool]) -> bool:
        """Takes trials' adapters out of memory; returns whether any left."""
        leaving = [admission for admission in self.admissions if is_leaving(admission)]
        for admission in leaving:
            self.admissions.remove(admission)
            self._clear(admission.packed.stack, admission.spec.trial_id)
        if leaving or not self.admissions:
            self._count_adapters()
            self.settle()
        return bool(leaving)

    def settle(self) -> None:
        """Points every trial at its row, and wraps the base or gives it back its own layers.

        Also the trials that wait: what they pointed at before is free memory again.
        """
        for admission in self.admissions:
            admission.packed.bind()
        if self.admissions:
            self._wrapped.wrap()
        else:
            self._wrapped.unwrap()

    def in_stack_order(self, admissions: Iterable[PackedAdmission]) -> list[PackedAdmission]:
        """The admissions with those of one stack together, and in it by slot."""
        order = {key: number for number, key in enumerate(self._stacks)}
        return sorted(admissions, key=lambda admission: (order[admission.packed.stack.key], admission.packed.slot))

    def _count_adapters(self, *entering: PackedTrial) -> None:
        """Tells a simulated device what adapters it holds; it may have no room for one that enters."""
        if self._memory is not None:
            here = [admission.packed for admission in self.admissions]
            self._memory.hold_adapters(sum(trial.num_bytes for trial in (*here, *entering)))

    def _clear(self, stack: AdapterStack, trial_id: str) -> None:
        if trial_id in stack.names:
            stack.remove(trial_id)
        if not len(stack):
            del self._stacks[stack.key]
