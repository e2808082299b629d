"""Tokens and features in a few dimensions, by scikit-learn. Shapes: M images, N patches, d embedding dimensions."""

import numpy as np
from torch import Tensor


def pca_colors(tokens: Tensor, foreground: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The first three principal components of the patch tokens of several images together, as colours.

    ``(M, N, d) -> (M, N, 3)`` in 0..1, each component from its 1st to its 99th percentile; and which patches are shown,
    ``(M, N)``, of bool.

    Args:
        tokens: patch tokens, without the CLS token.
        foreground: show the components of the foreground alone. It is what lies, in each image, above the middle of
            that image's range in the first component (or below it, for all images, if that is the smaller part). This
            component is of the patches without their image's mean: how images differ from one another is no
            background of theirs.

    Raises:
        ValueError: fewer than three patches, or dimensions.
    """
    from sklearn.decomposition import PCA

    M, N, d = tokens.shape
    if min(M * N, d) < 3:
        raise ValueError(f"three principal components need at least three patches and dimensions, got {M * N} and {d}")
    flat = tokens.detach().double().cpu().reshape(M * N, d).numpy()
    shown = np.ones(M * N, dtype=bool)
    if foreground:
        within = flat.reshape(M, N, d) - flat.reshape(M, N, d).mean(1, keepdims=True)
        first = PCA(1, svd_solver="full").fit_transform(within.reshape(M * N, d)).reshape(M, N)
        middle = (first.min(1, keepdims=True) + first.max(1, keepdims=True)) / 2
        shown = (first > middle).reshape(M * N)
        if shown.mean() > 0.5:
            shown = ~shown
        if shown.sum() < 3:
            raise ValueError(f"the foreground split leaves {shown.sum()} patches: do without it on these images")
    components = PCA(3, svd_solver="full").fit_transform(flat[shown])
    low, high = np.percentile(components, [1, 99], axis=0)
    colors = np.zeros((M * N, 3))
    colors[shown] = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    return colors.reshape(M, N, 3), shown.reshape(M, N)


def project(features: np.ndarray, method: str = "pca", seed: int = 0) -> np.ndarray:
    """Features in two dimensions, ``(n, d) -> (n, 2)``, by 'pca' or 'tsne'.

    Raises:
        ValueError: unknown ``method``, or too few images for it.
    """
    if len(features) < 2 or not np.isfinite(features).all() or np.ptp(features, axis=0).max() == 0:
        raise ValueError("a projection needs at least two images, with features that are finite and not all the same")
    if method == "pca":
        from sklearn.decomposition import PCA

        return PCA(2, svd_solver="full").fit_transform(features)
    if method == "tsne":
        from sklearn.manifold import TSNE

        if len(features) < 4:
            raise ValueError(f"t-SNE needs at least four images, got {len(features)}")
        perplexity = min(30, (len(features) - 1) / 3)
        return TSNE(2, init="pca", perplexity=perplexity, random_state=seed).fit_transform(features)
    raise ValueError(f"unknown method {method!r}: choose pca, tsne")
