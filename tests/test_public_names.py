"""Every public name resolves, is documented, and is exactly what the README's users were promised."""

import subprocess
import sys
from pathlib import Path

import hemstitch as hs


def test_every_name_resolves_and_has_a_docstring():
    for name in hs.__all__:
        value = getattr(hs, name)
        assert name == "__version__" or (value.__doc__ or "").strip(), name
    assert set(hs.__all__) <= set(dir(hs))


def test_no_module_has_the_name_of_a_function():
    """Importing it would put the module in the function's place: hs.describe was one, until this was seen."""
    folder = Path(hs.__file__).parent
    there = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not there & set(hs.__all__)


def test_unknown_names_are_attribute_errors():
    assert not hasattr(hs, "stich")


def test_the_readmes_names_are_public():
    used = {"load", "save", "Plan", "Stitched", "generate", "sample", "describe", "search", "Found", "AdaptivePlan"}
    assert used <= set(hs.__all__)


def test_the_core_imports_only_what_it_may():
    """Training, plotting and data extras are imported where they are used, not by the core."""
    extras = ["accelerate", "datasets", "diffusers", "sklearn", "matplotlib", "PIL", "tensorboard", "gradio", "fastapi"]
    code = f"""
import sys, hemstitch as hs
for name in hs.__all__: getattr(hs, name)
import hemstitch.data.mixture, hemstitch.recipes, hemstitch.bulk, hemstitch.train.fit, hemstitch.quickstart
sys.exit(", ".join(m for m in {extras} if m in sys.modules) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
