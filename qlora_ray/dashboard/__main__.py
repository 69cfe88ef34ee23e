"""`python -m qlora_ray.dashboard`."""

import sys

from qlora_ray.dashboard.command import main

if __name__ == "__main__":
    sys.exit(main())
