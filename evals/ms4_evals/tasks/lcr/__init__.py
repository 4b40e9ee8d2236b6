"""AA-LCR: questions over sets of long documents. ``task`` builds it; ``sources`` finds its data; ``tokens`` checks them."""
