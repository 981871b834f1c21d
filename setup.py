"""Package metadata, and the optional C++ extension `megatron_ext._native` built from csrc/*.cpp.

The extension is optional: where it cannot be compiled, the installation goes on, says so once, and every native
function is replaced at run time by its NumPy twin (`tools/doctor.py` tells which of the two is in use).
"""

from __future__ import annotations

import os
import sys
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
            print(f"warning: {ext.name} was not built ({error}); the NumPy twins are used instead.", file=sys.stderr)


def native_extensions() -> list[Extension]:
    """The extension with all of csrc/*.cpp in it; none while csrc is empty or pybind11 is absent."""
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.cpp"))
    if not sources or Pybind11Extension is None:
        return []
    # -ffp-contract=off: no fused multiply-add, so that C++ and its NumPy twin round alike.
    compile_args = ["-O3", "-ffp-contract=off", "-pthread"]
    link_args = ["-pthread"]
    if sys.platform.startswith("linux"):
        compile_args += ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
        link_args += ["-Wl,-z,relro,-z,now"]
    extension = Pybind11Extension(
        "megatron_ext._native",
        sources,
        cxx_std=17,
        include_dirs=["csrc"],
        depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.h*")),
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )
    extension.optional = not native_is_required()
    ParallelCompile(default=os.cpu_count() or 1).install()
    return [extension]


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
