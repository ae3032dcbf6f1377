"""Which source a phantom comes from: one its class does not tell, one its class does, or a mixture of the two."""

from __future__ import annotations

import numpy as np

from cxr_ray.data.phantom import PHANTOM_CLASSES
from cxr_ray.data.phantom_looks import LOOKS
from cxr_ray.errors import ConfigError

_SOURCE_STREAM = 102  # of random numbers, beside those of `draw_phantom`


def source_names(sources: int) -> list[str]:
    """``phantom`` for one source, without a look; ``phantom-a``, ``phantom-b`` ... for more, one a look."""
    return ["phantom"] if sources == 1 else [f"phantom-{chr(ord('a') + number)}" for number in range(sources)]


def check_sources(sources: int, confounding: float) -> None:
    """Refuse, before any film is drawn, sources that cannot be had.

    Raises:
        ConfigError: There is no look for so many sources, or `confounding` is no share or needs a second source.
    """
    if not 1 <= sources <= len(LOOKS):
        raise ConfigError(f"{sources} sources are not allowed; 1 to {len(LOOKS)} are", where="--sources")
    if not 0 <= confounding <= 1:
        raise ConfigError(f"confounding {confounding:g} is not allowed; 0 to 1 is", where="--confounding")
    if confounding > 0 and sources == 1:
        raise ConfigError(
            f"confounding {confounding:g} needs two sources or more, and there is 1",
            where="--confounding",
            next_step=f"Give --sources 2 to {len(LOOKS)} with it, or leave it out",
        )


def choose_source(label: str, *, seed: int, index: int, sources: int, confounding: float) -> int:
    """The number of the source that a film comes from.

    With probability `confounding` it is the label's own source, number (position in `PHANTOM_CLASSES`) mod
    `sources`, else any source, each as likely. So, of K sources and with confounding c,

        P(source | label) = c + (1 - c) / K for the label's own, (1 - c) / K for each other.

    One random number decides between the two for every c: where c rises, films leave a source of chance for their
    label's own, and none leaves its own.

    Args:
        label: One of `PHANTOM_CLASSES`.
        seed: Of the data set, as in `draw_phantom`.
        index: Of the film.
        sources: K, 1 to 5.
        confounding: c, 0 to 1.

    Returns:
        0 to K - 1.
    """
    rng = np.random.default_rng([seed, index, _SOURCE_STREAM])
    tells, any_source = rng.random(), int(rng.integers(sources))
    return PHANTOM_CLASSES.index(label) % sources if tells < confounding else any_source
