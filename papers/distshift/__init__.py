"""distshift: adversarial defense based on distribution transfer, a diffusion purifier guided by the victim (arXiv
2311.13841)."""
