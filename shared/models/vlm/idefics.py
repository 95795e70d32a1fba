"""Idefics, the open Flamingo: the language model looks at the tower's tokens through gated cross-attention layers
(Alayrac et al. 2022).

h ← h + tanh(α)·CrossAttention(h, image) and so for its feed-forward part. α starts at 0: until training has opened the
gates the model does not see, and gradients with respect to the pixels are exactly 0.
"""

from torch import Tensor, nn

from shared.models.victim import Norm
from shared.models.vlm.base import LanguageVLM
from shared.models.vlm.text import Text


class IdeficsVLM(LanguageVLM):
    """model: transformers' IdeficsForVisionText2Text; image_token: its number, from which on the text looks at the
    image; norm: as in `Pixels`."""

    def __init__(self, model: nn.Module, text: Text, image_token: int, norm: Norm = "clip"):
        super().__init__(model, text, norm, resize_mode="squash")
        self.image_token = image_token

    @property
    def tower(self) -> nn.Module:
        return self.model.model.vision_model

    def see(self, x):
        """All tokens of the tower's last layer, or what the resampler makes of them."""
        seen = self.tower(pixel_values=self.pixels(x)).last_hidden_state
        return self.model.model.perceiver_resampler(seen) if self.config.use_resampler else seen

    def read(self, ids, seen, cache=None, keep=False):
        # what is written before the image does not look at it
        looks = (ids == self.image_token).cumsum(1) > 0 if cache is None else ids == ids
        name = "perceiver_embeddings" if self.config.use_resampler else "image_encoder_embeddings"
        out = self.model.model(
            input_ids=ids,
            image_attention_mask=looks[:, :, None].long(),
            past_key_values=cache,
            use_cache=keep,
            **{name: seen[:, None]},
        )
        return out.last_hidden_state, out.past_key_values

    def embed(self, x: Tensor) -> Tensor:
        """The class token after the tower's last layer and norm."""
        return self.tower(pixel_values=self.pixels(x)).pooler_output
