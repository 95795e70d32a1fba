"""Text for language models: prompts and targets to token numbers, and what was said back to text.

`Words` is for the small models of the scenes world, one number per word; `Subwords` wraps the tokenizer of a published
model. A `Style` says what stands around the user's words: the models are sensitive to it, so it is the one that they
were trained or evaluated with.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from shared.data.language import VOCABULARY, words
from shared.data.vision_language import INSTRUCTION
from shared.errors import UserError

IMAGE = "<image>"
# attacks may ask for these, and captioners are told the instruction
SMALL_VOCABULARY = tuple(sorted({*VOCABULARY, *words(INSTRUCTION), "maybe", "word"}))


class Text(ABC):
    """pad, end: token numbers."""

    pad: int
    end: int

    @abstractmethod
    def prompt(self, text: str) -> list[int]:
        """Everything that stands before the answer, with a place for the image."""

    @abstractmethod
    def target(self, text: str) -> list[int]:
        """An answer and its end."""

    @abstractmethod
    def say(self, tokens: Sequence[int]) -> str:
        """An answer without its end, as text."""


class Words(Text):
    """<pad> 0, <start> 1, <end> 2, <image> 3, <answer> 4, then the vocabulary. A prompt is: start, image ×
    `image_tokens`, words, <answer>.

    Raises UserError for a word that is not in the vocabulary.
    """

    pad, start, end, image, says = range(5)

    def __init__(self, vocabulary: Sequence[str], image_tokens: int):
        self.vocabulary, self.image_tokens = tuple(vocabulary), image_tokens
        self._number = {word: i + 5 for i, word in enumerate(self.vocabulary)}

    @property
    def size(self) -> int:
        return len(self.vocabulary) + 5

    def _words(self, text: str) -> list[int]:
        try:
            return [self._number[w] for w in words(text)]
        except KeyError as error:
            raise UserError(
                f"the text {text!r} has the word {error.args[0]!r}, which this small model was not trained on: use the "
                "words of `shared.models.vlm.text.SMALL_VOCABULARY`, or a published model."
            ) from None

    def prompt(self, text):
        return [self.start, *[self.image] * self.image_tokens, *self._words(text), self.says]

    def target(self, text):
        return [*self._words(text), self.end]

    def say(self, tokens):
        return " ".join(self.vocabulary[t - 5] for t in tokens if t >= 5)


@dataclass(frozen=True)
class Style:
    """What stands around the user's words. `describe` is used for the captioning instruction, `ask` for everything
    else, i.e. questions.

    {prompt} is what the user says, {image} the image, {context} text-only examples given by the caller (empty by
    default). stops: where one of these begins, the answer ends.
    """

    describe: str
    ask: str
    stops: tuple[str, ...] = ()
    instruction: str = INSTRUCTION

    def wrap(self, prompt: str, image: str, context: str = "") -> str:
        template = self.describe if prompt == self.instruction else self.ask
        return template.format(prompt=prompt, image=image, context=context)

    def cut(self, answer: str) -> str:
        for stop in self.stops:
            answer = answer.split(stop)[0]
        return answer.strip()


_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: {image}\n%s ASSISTANT:"
)
STYLES = {
    # LLaVA-1.5's conversation `vicuna_v1`, with RobustVLM's instructions (chs20/RobustVLM, vlm_eval)
    "llava": Style(_VICUNA % "{prompt}", _VICUNA % "{prompt}\nAnswer the question using a single word or phrase."),
    # RobustVLM's prompts of OpenFlamingo; a base model goes on writing after its answer
    "idefics": Style(
        "{context}{image}Output:",
        "{context}{image}Question:{prompt} Short answer:",
        ("\n", "Output:", "Question:", "Answer:", "<"),
    ),
}


class Subwords(Text):
    """The tokenizer of a published model. image: what stands for the image, e.g. "<image>" 576 times; context: see
    `Style`."""

    def __init__(self, tokenizer, style: Style, image: str, image_token: int, image_tokens: int, context: str = ""):
        self.tokenizer, self.style, self.image, self.context = tokenizer, style, image, context
        self.end = tokenizer.eos_token_id
        self.pad = self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._known: dict[tuple[str, str], list[int]] = {}  # an attack says the same things hundreds of times
        if self.prompt("").count(image_token) != image_tokens or self.end is None:
            raise UserError(
                "the tokenizer beside the model does not know the model's image token, or has no end token: get the "
                "model's own tokenizer files."
            )

    def prompt(self, text):
        return self._numbers("prompt", self.style.wrap(text, self.image, self.context))

    def target(self, text):
        return [*self._numbers("target", text), self.end]

    def _numbers(self, kind: str, text: str) -> list[int]:
        if (kind, text) not in self._known:
            # the prompt begins a sequence; a target continues one
            self._known[kind, text] = list(self.tokenizer(text, add_special_tokens=kind == "prompt")["input_ids"])
        return self._known[kind, text]

    def say(self, tokens):
        return self.style.cut(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
