"""Models that see a picture and say something: LLaVA, a Flamingo-type model (Idefics) and zero-shot CLIP behind one
interface, `VLM`.

base      the interface, and what the two language models share: teacher-forced likelihood and greedy answers
text      words to numbers and back, prompts as the models were trained on them
vision    an open_clip vision tower as transformers' CLIPVisionModel or as Idefics' vision transformer
llava, idefics, zero_shot      the three kinds
open      `open_vlm`: the zoo's models, hub names and local folders
"""

from shared.models.vlm.open import open_vlm

__all__ = ["open_vlm"]
