"""Package metadata, and the optional C++ extensions: `megatron_ext._native` of csrc/, `_kernels` of csrc/kernels/.

They are optional: where one cannot be compiled, the installation goes on, says so once, and every native function is
replaced at run time: those of data by their NumPy twins, the kernels of a training step by PyTorch's own operations
(`tools/doctor.py` tells what is in use).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup

try:
    from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
except ImportError:  # metadata can be read without the build requirements
    Pybind11Extension, ParallelCompile = None, None
    from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent

# One source of truth for what is needed at run time; exact versions that were tested stand in requirements/.
INSTALL_REQUIRES = [
    "torch>=2.13,<2.14",
    "megatron-core==0.16.*",
    "numpy>=1.26",
    "sentencepiece>=0.2",
    "tokenizers>=0.22",
    "tiktoken>=0.9",
    "transformers>=5.3,<6",
    "safetensors>=0.5",
    "tensorboard>=2.16",
    "pyyaml>=6",
    # only for process groups of several optimizer instances, inside megatron-core
    "einops>=0.8",
    "tqdm>=4.66",
    "orjson>=3.10",
    "psutil>=5.9",
    "pyarrow>=17",
    "zstandard>=0.22",
]
EXTRAS = {
    "plot": ["matplotlib>=3.8"],
    "ray": ["ray>=2.40"],
    # Needs CUDA, a compiler and torch at build time: pip install --no-build-isolation -e '.[gpu]'
    "gpu": ["transformer-engine[pytorch]>=2.8"],
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.5",
        "pytest-timeout>=2.3",
        "hypothesis>=6.100",
        "ruff==0.17.6",
        "mypy==2.4.1",
    ],
}


def native_is_required() -> bool:
    """Whether a failed compilation must fail the installation."""
    return os.environ.get("MEGATRON_EXT_REQUIRE_NATIVE") == "1"


class OptionalBuildExt(build_ext):
    """Build what the compiler can; a failure is one warning, not a failed installation.

    Raises only with MEGATRON_EXT_REQUIRE_NATIVE=1, for machines where the NumPy twins would be too slow.
    """

    def build_extension(self, ext: Extension) -> None:
        """Compile one extension, or say why not."""
        try:
            super().build_extension(ext)
        except Exception as error:  # a missing compiler shows up as many different exception types
            if native_is_required():
                raise
            print(f"warning: {ext.name} was not built ({error}); NumPy and PyTorch take its place.", file=sys.stderr)


def native_extensions() -> list[Extension]:
    """The data operations and the CPU kernels; none while csrc is empty or pybind11 is absent."""
    if Pybind11Extension is None:
        return []
    ParallelCompile(default=os.cpu_count() or 1).install()
    # -ffp-contract=off: no fused multiply-add, so that C++ and its NumPy twin round alike.
    extensions = [extension("megatron_ext._native", "csrc", ["-ffp-contract=off"])]
    if sys.platform.startswith("linux"):
        # torch has brought its OpenMP by the time that this module is loaded, and the threads are torch's own
        extensions.append(extension("megatron_ext._kernels", "csrc/kernels", ["-fopenmp"], ["-fopenmp"]))
    return [extension for extension in extensions if extension.sources]


def extension(name: str, folder: str, compile_args: list[str], link_args: Sequence[str] = ()) -> Extension:
    """The extension of all C++ files of a folder."""
    hardened = ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
    linux = sys.platform.startswith("linux")
    found = Pybind11Extension(
        name,
        sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).glob("*.cpp")),
        cxx_std=17,
        include_dirs=[folder],
        depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).glob("*.h*")),
        extra_compile_args=["-O3", "-pthread", *compile_args, *(hardened if linux else [])],
        extra_link_args=["-pthread", *link_args, *(["-Wl,-z,relro,-z,now"] if linux else [])],
    )
    found.optional = not native_is_required()
    return found


def version() -> str:
    """The version string, read from the package without importing it."""
    for line in (ROOT / "megatron_ext" / "__init__.py").read_text(encoding="utf-8").splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise ValueError("megatron_ext/__init__.py has no __version__ line")


setup(
    name="megatron-ext",
    version=version(),
    description="From raw text to a Hugging Face model: pretraining on megatron-core, on a laptop and on a cluster.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.13",
    packages=find_namespace_packages(include=["megatron_ext*", "checkpoint_convert*"]),
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    ext_modules=native_extensions(),
    cmdclass={"build_ext": OptionalBuildExt},
    zip_safe=False,
)
