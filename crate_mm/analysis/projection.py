"""Project tokens and features with scikit-learn. Shapes: M images, N patches, d embedding dimensions."""

import numpy as np
from torch import Tensor


def pca_colors(tokens: Tensor, foreground: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the first three principal components of several images' patch tokens as colors, and the visible patches.

    Colors are ``(M, N, d) -> (M, N, 3)`` in 0..1, each component scaled from its 1st to its 99th percentile. Visible
    patches are ``(M, N)`` of bool.

    Args:
        tokens: patch tokens, without the CLS token.
        foreground: show only patches whose first component is above the middle of the range in their image or, if these
            are more than half of all patches, only the other patches. Each image's mean is subtracted before this
            component is computed, so that the component does not separate images.

    Raises:
        ValueError: there are fewer than three patches or dimensions, or fewer than three foreground patches.
    """
    from sklearn.decomposition import PCA

    M, N, d = tokens.shape
    if min(M * N, d) < 3:
        raise ValueError(f"three principal components need at least three patches and dimensions, got {M * N} and {d}")
    flat = tokens.detach().double().cpu().reshape(M * N, d).numpy()
    visible = np.ones(M * N, dtype=bool)
    if foreground:
        within = flat.reshape(M, N, d) - flat.reshape(M, N, d).mean(1, keepdims=True)
        first = PCA(1, svd_solver="full").fit_transform(within.reshape(M * N, d)).reshape(M, N)
        middle = (first.min(1, keepdims=True) + first.max(1, keepdims=True)) / 2
        visible = (first > middle).reshape(M * N)
        if visible.mean() > 0.5:
            visible = ~visible
        if visible.sum() < 3:
            raise ValueError(f"the foreground has {visible.sum()} patches, expected at least 3: use foreground=False")
    components = PCA(3, svd_solver="full").fit_transform(flat[visible])
    low, high = np.percentile(components, [1, 99], axis=0)
    colors = np.zeros((M * N, 3))
    colors[visible] = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    return colors.reshape(M, N, 3), visible.reshape(M, N)


def project(features: np.ndarray, method: str = "pca", seed: int = 0) -> np.ndarray:
    """Project features to two dimensions, ``(n, d) -> (n, 2)``, with 'pca' or 'tsne'.

    Raises:
        ValueError: ``method`` is unknown, or needs more images, or the features are not finite or are all equal.
    """
    if len(features) < 2 or not np.isfinite(features).all() or np.ptp(features, axis=0).max() == 0:
        raise ValueError("a projection needs at least two images with finite features that are not all equal")
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
