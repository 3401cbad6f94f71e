"""What importing the package costs."""

import subprocess
import sys


def test_importing_the_package_imports_no_torch() -> None:
    """The base install has no torch; names, questions and manifests work without it."""
    code = (
        "import sys, local_models, local_models.tasks, local_models.manifest, local_models.shape;"
        "assert local_models.shipped_models();"
        "assert not {'torch', 'transformers', 'triton'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
