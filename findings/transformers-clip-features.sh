#!/bin/sh
# What CLIPModel.get_image_features returns, and what its first element is.
#
# transformers 5.23.0 (torch 2.14.1), seen 2026-11-29: no tensor any more but an output whose `pooler_output` is the projected embedding.
#   features[0]                                        the tokens of the last layer, (N, tokens, width): no error where one picture's embedding was meant
#   features.pooler_output                             (N, projection), not normalised
#   model(...).vision_model_output.pooler_output       the same projected embedding, where the class token before the projection was to be expected:
#   model.vision_model(...).pooler_output              has that, (N, width), under the same name
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 transformers==5.23.0 >/dev/null 2>&1
cat > "$folder/features.py" <<'PY'
import torch
from transformers import CLIPConfig, CLIPModel

torch.manual_seed(0)
small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
text = {**small, "vocab_size": 40, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=12)
model = CLIPModel(config).eval()
x, ids = torch.rand(3, 3, 16, 16), torch.tensor([[1, 5, 2]] * 3)
with torch.no_grad():
    features = model.get_image_features(pixel_values=x)
    whole = model(pixel_values=x, input_ids=ids)
    tower = model.vision_model(pixel_values=x)
print("returned", type(features).__name__, "first element", tuple(features[0].shape))
named = {"get_image_features": features, "the whole model": whole.vision_model_output, "its vision_model": tower}
print({who: tuple(output.pooler_output.shape) for who, output in named.items()})
assert not isinstance(features, torch.Tensor), "a tensor again"
assert features[0].shape == (3, 5, 16), "the first element is the tokens"
assert tower.pooler_output.shape == (3, 16), "before the projection"
assert torch.equal(whole.vision_model_output.pooler_output, features.pooler_output), "after it, under the same name"
unit = features.pooler_output / features.pooler_output.norm(dim=-1, keepdim=True)
assert (unit - whole.image_embeds).abs().max() < 1e-5, "it is the embedding, before it is normalised"
assert (features.pooler_output.norm(dim=-1) - 1).abs().min() > 1e-3
PY
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" features.py
