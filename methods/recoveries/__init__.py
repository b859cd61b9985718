"""What trains a compressed model again, one file each; see `base`."""
