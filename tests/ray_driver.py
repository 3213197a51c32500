"""Runs predict with faulty workers: ray_driver.py ADDRESS IN OUT LOG SECONDS, for tests that kill it."""

import sys
from pathlib import Path

from faulty_workers import Faulty

from carvana_batch.commands.reporting import Screen
from carvana_batch.commands.signals import stop_on_signals
from carvana_batch.engines.dispatch import Dispatcher
from carvana_batch.engines.ray import RayCrew
from carvana_batch.inputs.find import find_images
from carvana_batch.network.checkpoints import load_model
from carvana_batch.options import Options
from carvana_batch.run import run

if __name__ == "__main__":
    address, photos, out, log, seconds = sys.argv[1:]
    crew = RayCrew("segunet-s", address, make=Faulty(log, seconds=float(seconds)))
    with stop_on_signals(Screen(quiet=False), "stopping") as stop:
        report = run(
            find_images(Path(photos)).refs,
            Path(out),
            load_model("segunet-s"),
            Options(precision="fp32", workers=0),
            stop=stop,
            engine=Dispatcher(crew),
        )
    sys.exit(report.exit_code)
