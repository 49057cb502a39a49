"""Phases of layers: how much they move together, and how much that varies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike

from mlflow_dynamics.measures.signals import Array, Mask, as_signals, standardise

EDGE_STEPS: Final = 10
"""Steps left out at each end, where the Hilbert transform's phase depends on the steps from the edge, not on T."""

EDGE_FRACTION: Final = 6
"""At most steps / 6 is left out at each end, so that short series (below 60 steps) keep two thirds."""

MIN_STEPS: Final = 8
"""Below this many steps a phase says next to nothing."""


def edge(steps: int) -> int:
    """The number of steps left out at each end of a series: 10, or a sixth of a series of fewer than 60 steps."""
    return min(EDGE_STEPS, steps // EDGE_FRACTION)


@dataclass(frozen=True)
class Phasors:
    """exp(i theta) of every layer and step: cosines, sines (..., layers, steps); 0 for layers left out."""

    cos: Array
    sin: Array
    usable: Mask  # (..., layers)

    @property
    def count(self) -> Array:
        """(...,) number of usable layers."""
        return self.usable.sum(axis=-1).astype(np.float64)

    def order(self) -> Array:
        """(..., steps) length of the usable layers' mean phasor; NaN where fewer than two layers are usable."""
        return np.sqrt(self.sums()[2]) / self._divisor()[..., None]

    def sums(self) -> tuple[Array, Array, Array]:
        """(..., steps) summed cosines and sines over the layers, and the square of the sum's length."""
        cos, sin = self.cos.sum(axis=-2), self.sin.sum(axis=-2)
        return cos, sin, cos * cos + sin * sin

    def coherence(self) -> Array:
        """(..., layers) mean cosine between a layer's phase and the mean phase of the others; NaN where undefined."""
        cos, sin, square = self.sums()
        # With Z the sum and z the layer's phasor: Re(z conj(Z - z)) / |Z - z|.
        along = self.cos * cos[..., None, :]
        along += self.sin * sin[..., None, :]
        length = square[..., None, :] + 1 - 2 * along
        np.maximum(length, np.finfo(float).tiny, out=length)
        np.sqrt(length, out=length)
        along -= 1
        along /= length
        defined = self.usable & (self.count > 1)[..., None]
        return np.clip(np.where(defined, along.mean(axis=-1), np.nan), -1, 1)

    def unbiased_variation(self) -> Array:
        """(...,) standard deviation over time of r(t)^2, with the variance's sign; NaN with fewer than four layers.

        r^2 and r^4 are mean products over pairs and over fours of different layers, from Z = sum of the phasors and
        Z2 = sum of their squares.
        """
        real, imaginary, square = self.sums()
        cos = (self.cos**2 - self.sin**2).sum(axis=-2)
        sin = 2 * (self.cos * self.sin).sum(axis=-2)
        # Re(Z2 conj(Z)^2)
        along = cos * (real**2 - imaginary**2) + 2 * sin * real * imaginary
        count = np.where(self.count > 3, self.count, np.nan)[..., None]
        fours = square**2 + cos**2 + sin**2 - 2 * along - 4 * (count - 2) * square + 2 * count * (count - 3)
        fours /= count * (count - 1) * (count - 2) * (count - 3)
        pairs = (square - count) / (count * (count - 1))
        variance: Array = fours.mean(axis=-1) - pairs.mean(axis=-1) ** 2
        return np.sign(variance) * np.sqrt(np.abs(variance))

    def _divisor(self) -> Array:
        return np.where(self.count > 1, self.count, np.nan)


def phasors(detrended: Array, usable: Mask) -> Phasors:
    """Phasors of standardised signals (..., layers, steps), without the steps at both edges."""
    steps = detrended.shape[-1]
    spectrum = scipy.fft.rfft(detrended)
    spectrum *= -1j
    spectrum[..., 0] = 0
    if steps % 2 == 0:
        spectrum[..., -1] = 0
    keep = slice(edge(steps), steps - edge(steps))
    real = detrended[..., keep]
    imaginary = scipy.fft.irfft(spectrum, steps)[..., keep]
    length = real * real
    length += imaginary * imaginary
    np.sqrt(length, out=length)
    np.maximum(length, np.finfo(float).tiny, out=length)
    return Phasors(real / length, imaginary / length, usable)


def order_parameter(signals: ArrayLike) -> Array:
    """The Kuramoto order parameter R(t) = |mean over layers of exp(i theta_l(t))|.

    theta_l is the phase of the analytic signal (Hilbert transform) of layer l, linearly detrended.

    Args:
        signals: (..., layers, steps). Constant and non-finite layers are left out.

    Returns:
        (..., steps - 2 edge) in [0, 1], with `edge(steps)` = 10 steps left out at each end (a sixth of fewer
        than 60). NaN where fewer than two layers are usable or fewer than 8 steps are given.

    How to read it: 1 if all layers are in phase, 0 if their phases cancel. L incoherent layers have mean
    sqrt(pi / (4 L)), not 0. What it does not show: coupling without agreement; two signals in antiphase have R = 0
    although they are coupled.

    Raises:
        ValueError: fewer than two axes, or values that are not real.

    References:
        Kuramoto 1984, doi 10.1007/978-3-642-69689-3; Shanahan 2010, doi 10.1063/1.3305451; Cabral et al. 2011, doi
        10.1016/j.neuroimage.2011.04.010.

    Examples:
        >>> import numpy as np
        >>> wave = np.sin(np.linspace(0, 60, 200))
        >>> r = order_parameter([wave, 3 * wave])
        >>> r.shape, bool(np.allclose(r, 1))
        ((180,), True)
    """
    values = as_signals(signals, layers=True)
    detrended, deviation = standardise(values, order=1)
    if values.shape[-1] < MIN_STEPS:
        width = values.shape[-1] - 2 * edge(values.shape[-1])
        return np.full((*values.shape[:-2], width), np.nan)
    return phasors(detrended, np.isfinite(deviation)).order()


def synchrony(signals: ArrayLike) -> Array:
    """Mean over time of the order parameter R(t): (..., layers, steps) -> (...,) in [0, 1].

    How to read it: 1 for layers in phase, sqrt(pi / (4 L)) for L incoherent ones (`incoherent_synchrony`). What it
    does not show: size; a layer that moves a thousandth as much counts the same. NaN and errors: see
    `order_parameter`.

    References:
        Shanahan 2010, doi 10.1063/1.3305451; Cabral et al. 2011, doi 10.1016/j.neuroimage.2011.04.010.

    Examples:
        >>> import numpy as np
        >>> round(float(synchrony(np.random.default_rng(0).normal(size=(100, 4096)))), 2)
        0.09
    """
    return _over_time(order_parameter(signals), np.mean)


def metastability(signals: ArrayLike) -> Array:
    """Standard deviation over time of the order parameter R(t): (..., layers, steps) -> (...,) in [0, 0.5].

    How to read it: 0 for layers that keep their phase relation, high where they switch between states more and
    less in phase. Some authors use the variance; this is the standard deviation. L incoherent layers give
    sqrt((1 - pi/4) / L), not 0, and the value of coupled layers changes with L too: compare networks of different depth
    by `metastability_unbiased`. What it does not show: that states are switched; linear coupling alone raises it too
    (see `surrogate_tests`). NaN and errors: see `order_parameter`.

    References:
        Shanahan 2010, doi 10.1063/1.3305451; Deco et al. 2017, doi 10.1038/s41598-017-03073-5.

    Examples:
        >>> import numpy as np
        >>> wave = np.sin(np.linspace(0, 60, 200))
        >>> round(float(metastability([wave, 3 * wave])), 6)
        0.0
    """
    return _over_time(order_parameter(signals), np.std)


def metastability_ratio(signals: ArrayLike) -> Array:
    """Metastability over that of as many incoherent layers: (..., layers, steps) -> (...,), 0 or more.

    M / sqrt((1 - pi/4) / L), with L the number of layers that vary.

    How to read it: compare values within one network only. 1 is the floor that incoherent layers give (exact for many
    layers; 2 layers give 0.81); above 1 coherence comes and goes. What it does not show: anything across depths once
    layers are coupled, because the ratio then grows as sqrt(L): the same dynamics give 1.1, 2.1 and 4.7 with 5, 20 and
    100 layers (compare these by `metastability_unbiased`). Layers in constant phase and incoherent layers differ (0 and
    1), although neither switch. NaN and errors: see `order_parameter`.

    References:
        Shanahan 2010, doi 10.1063/1.3305451; the floor is that of a two-dimensional random walk: Rayleigh 1880,
        doi 10.1080/14786448008626893.

    Examples:
        >>> import numpy as np
        >>> round(float(metastability_ratio(np.random.default_rng(0).normal(size=(50, 4096)))), 1)
        1.0
    """
    values = as_signals(signals, layers=True)
    count = np.isfinite(standardise(values, order=1)[1]).sum(axis=-1)
    return metastability(values) / incoherent_metastability(np.maximum(count, 1))


def metastability_unbiased(signals: ArrayLike) -> Array:
    """How much the layers' agreement varies in time, whatever their number: (..., layers, steps) -> (...,).

    This is the standard deviation over time of r(t)^2, where r(t) is the order parameter that infinitely many such
    layers would have. <2> = mean over pairs of different layers of cos(theta_i - theta_j) and <4> = mean over fours of
    cos(theta_i + theta_j - theta_k - theta_l) estimate r^2 and r^4 without bias, even from few layers. The result is
    sign(V) sqrt(|V|), with V = mean over time of <4> - (mean over time of <2>)^2.

    Returns:
        about 0 to 0.5; V scatters about 0 for incoherent layers and so may be negative. NaN with fewer than four
        usable layers or fewer than 8 steps.

    How to read it: 0 for layers that all rise and fall together and for incoherent layers; 0.5 for layers that are in
    phase half of the time and incoherent otherwise. The expected V does not depend on depth, for coupled and for
    incoherent layers, if the window is long beside the layers' memory; its scatter does depend on depth (at 512 steps
    of AR(1) noise 0.8 with a common factor 0.24 +- 0.03 for 5 layers, +- 0.01 for 20 or more). V is too small for slow
    layers in a short window, and the more so the fewer the layers (walks with a common factor: 0.11, 0.19, 0.21 for 5,
    20, 100 layers). What it does not show: that states are switched (see `surrogate_tests`). Nor are few layers in a
    fixed relation other than in phase a sample of "such layers": layers of which half are in antiphase give 0.40, 0.08,
    0.01 for 5, 20, 100 layers though nothing varies. Errors: see `order_parameter`.

    References:
        Bilandzic, Snellings and Voloshin 2011, doi 10.1103/PhysRevC.83.044913 (unbiased products of phasors);
        Shanahan 2010, doi 10.1063/1.3305451.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> wave, on = np.sin(np.arange(512)), np.arange(512) // 64 % 2
        >>> [round(float(metastability_unbiased(rng.normal(size=(L, 512)) + 9 * on * wave)), 1) for L in (5, 50)]
        [0.5, 0.5]
    """
    values = as_signals(signals, layers=True)
    detrended, deviation = standardise(values, order=1)
    if values.shape[-1] < MIN_STEPS:
        return np.full(values.shape[:-2], np.nan)[()]
    return phasors(detrended, np.isfinite(deviation)).unbiased_variation()[()]


def incoherent_synchrony(layers: ArrayLike) -> Array:
    """Mean R of L incoherent layers: sqrt(pi / (4 L)), exact for many layers."""
    return np.sqrt(np.pi / (4 * np.asarray(layers, dtype=np.float64)))


def incoherent_metastability(layers: ArrayLike) -> Array:
    """Standard deviation of R of L incoherent layers: sqrt((1 - pi/4) / L), exact for many layers."""
    return np.sqrt((1 - np.pi / 4) / np.asarray(layers, dtype=np.float64))


def _over_time(order: Array, statistic: Callable[..., Array]) -> Array:
    if order.shape[-1] == 0:
        return np.full(order.shape[:-1], np.nan)[()]
    result: Array = statistic(order, axis=-1)
    return result
