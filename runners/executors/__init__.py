"""Where stages run: worker processes of this machine, or tasks of a Ray cluster."""
