"""What bases mean, and what a compression did to them."""
