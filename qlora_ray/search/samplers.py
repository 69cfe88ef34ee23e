"""The samplers that a config can name: one function per entry of `config.choices.SAMPLERS`."""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

from qlora_ray.config.choices import SAMPLERS
from qlora_ray.config.schema import Search
from qlora_ray.errors import ConfigError
from qlora_ray.search.space import SearchSpace, encode_choice

if TYPE_CHECKING:
    import optuna

# NSGA-II: four generations in a sweep, of no fewer than two pairs of parents. Ours.
NUM_GENERATIONS = 4
MIN_POPULATION = 4


def make_sampler(search: Search, space: SearchSpace) -> optuna.samplers.BaseSampler:
    """Returns the sampler that a config names.

    Args:
        search: The config section `search`.
        space: The parameters and their ranges.

    Raises:
        ConfigError: The sampler needs a package that is not installed.
    """
    make = SAMPLERS[search.sampler].make
    try:
        sampler: optuna.samplers.BaseSampler = pkgutil.resolve_name(make)(search, space, search.seed)
    except ImportError as error:
        raise ConfigError(
            f"search.sampler: {search.sampler} needs the package {error.name}, which is not installed. "
            "Install qlora_ray[samplers]."
        ) from None
    return sampler


def make_tpe(search: Search, space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    """Returns a tree-structured Parzen estimator over all parameters together."""
    import optuna

    # constant_liar: running trials count as bad, so that parallel trials do not all ask for the same spot.
    return optuna.samplers.TPESampler(
        n_startup_trials=search.num_startup_trials, multivariate=True, constant_liar=True, seed=seed
    )


def make_random(search: Search, space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    """Returns independent draws."""
    import optuna

    return optuna.samplers.RandomSampler(seed=seed)


def make_cma_es(search: Search, space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    """Returns CMA-ES; parameters with `choices` are drawn at random."""
    # It imports cmaes, which optuna would do at the first proposal, too late for a message.
    from qlora_ray.search.cma_es import JsonCmaEsSampler

    return JsonCmaEsSampler(n_startup_trials=search.num_startup_trials, seed=seed, warn_independent_sampling=False)


def make_gp(search: Search, space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    """Returns Bayesian optimization by a Gaussian process."""
    import optuna
    import scipy  # noqa: F401 - optuna imports it at the first proposal, too late for a message

    return optuna.samplers.GPSampler(n_startup_trials=search.num_startup_trials, seed=seed)


def make_nsga2(search: Search, space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    """Returns NSGA-II, for two objectives."""
    import optuna

    population = max(MIN_POPULATION, search.num_trials // NUM_GENERATIONS)
    return optuna.samplers.NSGAIISampler(population_size=population, seed=seed)


def make_grid(search: Search, space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    """Returns a walk over the grid's points, each once, in an order drawn by the sweep's seed."""
    from qlora_ray.search.grid import AskTellGrid

    grid = {parameter.path: [encode_choice(value) for value in parameter.grid()] for parameter in space.parameters}
    return AskTellGrid(grid, seed=search.seed)
