"""``python -m ms4_train.cli``: the same as ``ms4``, for launchers that want a module, such as torchrun."""

from ms4_train.cli.main import main

if __name__ == "__main__":
    main()
