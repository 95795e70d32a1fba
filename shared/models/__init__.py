"""What is attacked and defended: CLIP models, the victims made of them, and the zoo of small trained ones."""
