"""Publishing a factorised checkpoint on a hub: what is known of it, its model card, the upload."""
