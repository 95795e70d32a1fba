"""LLaVA: the tokens of a CLIP's patches, through two layers, stand in the language model's sequence as if they were
words (Liu et al. 2023)."""

import torch
from torch import Tensor, nn

from shared.models.victim import Norm
from shared.models.vlm.base import LanguageVLM
from shared.models.vlm.text import Text


class LlavaVLM(LanguageVLM):
    """model: transformers' LlavaForConditionalGeneration; text: with the image's tokens at one place in every prompt;
    norm: as in `Pixels`."""

    def __init__(self, model: nn.Module, text: Text, norm: Norm = "clip"):
        super().__init__(model, text, norm)

    @property
    def tower(self) -> nn.Module:
        return self.model.model.vision_tower

    def see(self, x):
        """The patches' tokens of the layer that LLaVA reads, not yet projected."""
        states = self.tower(self.pixels(x), output_hidden_states=True).hidden_states
        layers = self.config.vision_feature_layer
        some = [states[k] for k in ([layers] if isinstance(layers, int) else layers)]
        return torch.cat([s[:, 1:] if self.config.vision_feature_select_strategy == "default" else s for s in some], -1)

    def read(self, ids, seen, cache=None, keep=False):
        inner = self.model.model
        inputs = inner.language_model.embed_tokens(ids)
        if cache is None:  # later tokens are words
            start = int((ids[0] == self.config.image_token_index).int().argmax())
            inputs = torch.cat(
                [inputs[:, :start], inner.multi_modal_projector(seen), inputs[:, start + seen.shape[1] :]], 1
            )
        out = inner.language_model(inputs_embeds=inputs, past_key_values=cache, use_cache=keep)
        return out.last_hidden_state, out.past_key_values

    def embed(self, x: Tensor) -> Tensor:
        """The class token after the tower's last layer and norm."""
        return self.tower(self.pixels(x)).pooler_output
