"""DiffCAP: cumulative adversarial purification by diffusion, for vision-language models (TMLR 2026, arXiv
2506.03933)."""
