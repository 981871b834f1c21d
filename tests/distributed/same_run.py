"""What two layouts of one run must share (law L1)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

RELATIVE = 1e-5
SILENT = 1e-3
"""A gradient this small beside the largest of the model is judged as if it were this share of it: keys' biases move
every score of a query alike, so their gradient is nothing but rounding."""


def assert_same_run(reference_file: Path, found_file: Path, relative: float = RELATIVE) -> None:
    """The same first weights bit for bit; losses, norms and every first gradient within `relative`, as relative error.

    Both files are what `layouts_worker.run_case` writes. A gradient's error is relative to the largest element of its
    tensor.
    """
    with np.load(reference_file) as reference, np.load(found_file) as found:
        assert set(reference.files) == set(found.files)
        for name in _names(reference, "start/"):
            assert np.array_equal(reference[name], found[name]), f"{name} starts from other weights"
        for name in ("losses", "validation", "grad_norms"):
            np.testing.assert_allclose(found[name], reference[name], rtol=relative, err_msg=name)
        gradients = _names(reference, "gradient/")
        assert gradients
        floor = SILENT * max(np.abs(reference[name]).max() for name in gradients)
        for name in gradients:
            bound = relative * max(np.abs(reference[name]).max(), floor)
            np.testing.assert_allclose(found[name], reference[name], rtol=0, atol=bound, err_msg=name)


def _names(archive: np.lib.npyio.NpzFile, prefix: str) -> list[str]:
    return [name for name in archive.files if name.startswith(prefix)]
