"""How the demo's models were trained; needs torch, which the product does not."""
