"""Training that more than one paper uses: the loop with exact resume, contrastive pre-training, adversarial
fine-tuning."""
