"""PMG-AFT: adversarial fine-tuning of CLIP guided by the pre-trained model (CVPR 2024, arXiv 2401.04350)."""
