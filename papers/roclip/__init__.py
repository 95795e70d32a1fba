"""RoCLIP: contrastive pre-training and fine-tuning that poisoned pairs cannot enter (NeurIPS 2023, arXiv
2303.06854)."""
