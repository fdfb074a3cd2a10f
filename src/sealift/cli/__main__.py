"""``python -m sealift.cli`` is ``sealift``."""

from sealift.cli.main import main

if __name__ == "__main__":
    main()
