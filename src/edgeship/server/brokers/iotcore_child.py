"""Child process: the iotcore broker on one configuration file, for as long as its parent lives.

``python -m edgeship.server.brokers.iotcore_child --config FILE``; the parent keeps standard input open.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading

from iotcore import IotCoreBroker


def exit_with_parent() -> None:
    """End this process when the other end of standard input is closed, which the kernel does for a killed parent."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


def main() -> None:
    """Serve until the parent is gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    arguments = parser.parse_args()
    # the broker wraps every packet's routing into an error span; its own word for trouble is a closed connection
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    threading.Thread(target=exit_with_parent, daemon=True).start()
    IotCoreBroker(config_path=arguments.config).run_forever()


if __name__ == "__main__":
    main()
