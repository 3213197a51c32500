"""``python -m carvana_batch``."""

from carvana_batch.commands import main

if __name__ == "__main__":
    main()
