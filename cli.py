#!/usr/bin/env python3
"""Launcher for a checkout: ``python cli.py predict in/ out/``."""

from carvana_batch.commands import main

if __name__ == "__main__":
    main()
