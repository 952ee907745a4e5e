"""The space of a search: a command's overrides that have several values, as Optuna's distributions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override, Transformer
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from edkd.errors import EdkdError

_SAME = ("pair", "teacher", "student", "dataset", "seed", "teacher_seed")  # the same in all trials, to compare them


@dataclass(frozen=True)
class Space:
    """The overrides of a search, one for each key, and the distributions of the keys that are searched."""

    overrides: list[Override]
    distributions: dict[str, BaseDistribution]

    def combination(self, chosen: Mapping[str, str]) -> list[str]:
        """The overrides of a run with these values of the searched keys."""
        keys = [override.get_key_element() for override in self.overrides]
        return [
            f"{key}={chosen[key] if key in chosen else override.get_value_element_as_str()}"
            for key, override in zip(keys, self.overrides)
        ]

    def ends(self) -> list[list[str]]:
        """Runs at the ends of all ranges, within them and with each choice, to find what is refused before a search."""
        texts = {key: _texts(distribution) for key, distribution in self.distributions.items()}
        for key, distribution in self.distributions.items():
            if isinstance(distribution, FloatDistribution) and distribution.step is None:
                between = distribution.low + 0.382 * (distribution.high - distribution.low)
                texts[key].append(text(between))  # seldom a whole number, as the ends are
        count = max(len(each) for each in texts.values())
        return [self.combination({key: each[i % len(each)] for key, each in texts.items()}) for i in range(count)]

    def lines(self) -> Iterator[str]:
        """A line for each key, for a user: its range or its choices."""
        for key, distribution in self.distributions.items():
            texts = _texts(distribution)
            if isinstance(distribution, CategoricalDistribution):
                yield f"{key}: {', '.join(texts)}"
                continue
            assert isinstance(distribution, FloatDistribution | IntDistribution)
            step = f" in steps of {text(distribution.step)}" if distribution.step else ""
            yield f"{key}: {' to '.join(texts)}{', on a logarithmic scale' if distribution.log else step}"

    def document(self) -> dict[str, str]:
        """The distributions as JSON, which identify this space."""
        return {key: distribution_to_json(distribution) for key, distribution in self.distributions.items()}


def make_space(given: Sequence[Override]) -> Space:
    """The space of some overrides; the last override of a key counts.

    Raises EdkdError if no key has several values, or if a key that all trials share has several.
    """
    overrides = list({override.key_or_group: override for override in given}.values())
    varied = [override for override in overrides if override.is_sweep_override()]
    for override in varied:
        shared = override.key_or_group.split(".")[0]
        if shared in _SAME:
            raise EdkdError(f"{override.input_line}: the trials of a search have one {shared}")
    if not varied:
        raise EdkdError(
            "nothing to search: give a key several values, such as 'distiller.temperature=interval(1,8)'; "
            "see docs/search.md"
        )
    return Space(overrides, {override.get_key_element(): _distribution(override) for override in varied})


def text(value: Any) -> str:
    """A value with six digits, as many as lists and tables show, so that they show exactly the run's value."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _distribution(override: Override) -> BaseDistribution:
    value: Any = override.value()
    log = "log" in value.tags
    try:
        if override.is_interval_sweep():
            whole = isinstance(value.start, int)
            return (IntDistribution if whole else FloatDistribution)(value.start, value.end, log=log)
        if override.is_range_sweep():
            numbers: list[Any] = list(override.sweep_iterator(transformer=Transformer.identity))
            whole = all(isinstance(each, int) for each in numbers)
            made = IntDistribution if whole else FloatDistribution
            return made(min(numbers), max(numbers), log=log, step=abs(value.step))
        return CategoricalDistribution(list(dict.fromkeys(str(each) for each in override.sweep_string_iterator())))
    except ValueError as error:
        raise EdkdError(f"{override.input_line}: {' '.join(str(error).split())}") from error


def _texts(distribution: BaseDistribution) -> list[str]:
    """The ends of a range, or all choices, as the command line would have them."""
    if isinstance(distribution, CategoricalDistribution):
        return [str(choice) for choice in distribution.choices]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [text(distribution.low), text(distribution.high)]
