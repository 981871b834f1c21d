"""The environment of the older transformers generation: `.venv-transformers457`, made once, torch taken from this one.

    python tests/e2e/transformers457_env.py      prints the path of its interpreter

Only what differs is installed; everything else (torch, numpy, safetensors, ...) comes from the running environment
through a path file that is searched last.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".venv-transformers457"
PINS = (
    "transformers==4.57.6",
    "huggingface_hub==0.36.2",
    "tokenizers==0.22.2",
    "requests==2.32.5",
    "urllib3==2.5.0",
    "charset-normalizer==3.4.4",
    "certifi==2025.10.5",
    "idna==3.11",
)
DONE = "installed.txt"


def interpreter(folder: Path = FOLDER) -> Path:
    """Path of an interpreter that sees transformers 4.57.6; makes the environment if it is not there yet.

    Raises:
        subprocess.CalledProcessError: it cannot be made (pip's output is shown).
    """
    python = folder / "bin" / "python"
    wanted = "\n".join([*PINS, sys.prefix]) + "\n"
    done = folder / DONE
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", *PINS], check=True)
    [packages] = folder.glob("lib/python3*/site-packages")
    (packages / "zz_shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    done.write_text(wanted, encoding="utf-8")
    return python


if __name__ == "__main__":
    print(interpreter())
