"""``python -m cxr_ray`` is ``cxr-ray``."""

from cxr_ray.cli import main

main()
