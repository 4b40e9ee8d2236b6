"""The command line, ``ms4``: ``main.py`` joins the groups, each in the file named after it. Exercise it: ``ms4 --help``.

Nothing here imports torch until a command needs it, so that help and errors come at once.
"""
