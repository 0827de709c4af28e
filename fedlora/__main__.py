"""The command ``fedlora``, also as ``python -m fedlora``: nothing comes from where it is typed."""

import os
import sys


def main() -> None:
    """Run the command line; see ``fedlora.cli.main``."""
    from fedlora.import_path import Importing, blamed_on_path, leave_working_folder

    leave_working_folder()
    try:
        with Importing():
            from fedlora.cli import main as command_line
    except Exception as error:
        sentence = blamed_on_path(error)
        if not sentence:
            raise
        print(f"fedlora: {sentence}", file=sys.stderr)
        sys.exit(2)
    command_line()


if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path[0] != os.path.dirname(os.path.dirname(__file__)):
        del sys.path[0]  # Python puts the working folder there, before all libraries
    main()
